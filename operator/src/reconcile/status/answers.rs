//! What is wrong according to a member's own answer.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::verdict::Problem;
use crate::reconcile::poll::{NodeStatus, UnjoinableStatus};

/// How long before its end a certificate is reported: it should have been renewed by then.
const EXPIRING: SignedDuration = SignedDuration::from_hours(14 * 24);
/// The most peers that are named, of those that a member cannot talk to.
const UNJOINABLE_SHOWN: usize = 3;

pub(super) fn problems(member: &str, status: &NodeStatus, now: Timestamp) -> Vec<Problem> {
    let mut problems = Vec::new();
    if status.full {
        problems.push((
            "NodeFull",
            format!(
                "{member} is full and refuses writes: delete keys, or raise spec.maxMemory, or if that is unset \
                 spec.resources.limits.memory ({} bytes for entries now)",
                status.max_memory_bytes
            ),
        ));
    }
    for discovery in &status.discovery {
        if let Some(error) = &discovery.error {
            problems
                .push(("DiscoveryFailing", format!("{member} cannot find peers by {}: {error}", discovery.provider)));
        }
    }
    problems.extend(unjoinable(member, status));
    for (usage, certificate) in &status.certificates {
        let end = certificate.not_after_ms.and_then(|end| Timestamp::from_millisecond(end).ok());
        // Names the end and not the time that is left, which would change the status at every reconcile.
        if let Some(end) = end.filter(|end| end.duration_since(now) < EXPIRING) {
            let message =
                format!("the certificate of {member} for {usage} expires at {end}: check what should renew it");
            problems.push(("CertificateExpiring", message));
        }
    }
    for (what, reload) in &status.reloads {
        if let Some(error) = &reload.error {
            let message = format!("{member} cannot use its files for {what} and keeps the earlier ones: {error}");
            problems.push(("ReloadFailing", message));
        }
    }
    problems
}

/// The peers that a member cannot talk to.
fn unjoinable(member: &str, status: &NodeStatus) -> Option<Problem> {
    let describe = |UnjoinableStatus { address, name, why }: &UnjoinableStatus| match name {
        Some(name) => format!("{name} ({address}): {why}"),
        None => format!("{address}: {why}"),
    };
    let shown: Vec<_> = status.unjoinable.iter().take(UNJOINABLE_SHOWN).map(describe).collect();
    let more = if status.unjoinable.len() > shown.len() { ", …" } else { "" };
    (!shown.is_empty()).then(|| {
        let waits = if status.phase == "ready" { "" } else { ", and is not ready before it can" };
        ("PeersRefused", format!("{member} cannot talk to {}{more}{waits}", shown.join(", ")))
    })
}
