//! What is wrong with the sidecars of application pods; and kills for lack of memory, of members too.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::verdict::Problem;
use crate::webhook::pods::{Failing, Sidecars};

/// How long a kill for lack of memory is part of the Degraded condition.
pub(super) const OOM_SHOWN: SignedDuration = SignedDuration::from_mins(10);
/// Reason of the condition and of the event.
pub(crate) const OOM_KILLED: &str = "OOMKilled";
/// The most application pods that are named.
const MOST_NAMED: usize = 3;

pub(super) fn problems(sidecars: &Sidecars, now: Timestamp) -> Vec<Problem> {
    let mut problems = Vec::new();
    let recent: Vec<_> = sidecars.killed.iter().filter(|(_, at)| now.duration_since(*at) < OOM_SHOWN).collect();
    if let Some((pod, at)) = recent.first() {
        let others = recent.len() - 1;
        let more = if others > 0 { format!(", and {others} other sidecars were") } else { String::new() };
        problems.push((OOM_KILLED, format!("{}{more}", killed(&format!("the sidecar of {pod}"), *at))));
    }
    if !sidecars.failing.is_empty() {
        let named: Vec<_> =
            sidecars.failing.iter().take(MOST_NAMED).map(|Failing { name, why }| format!("{name}: {why}")).collect();
        let others = sidecars.failing.len() - named.len();
        let more = if others > 0 { format!("; and {others} more") } else { String::new() };
        problems.push((
            "SidecarFailing",
            format!("{} sidecars do not run, and their pods wait: {}{more}", sidecars.failing.len(), named.join("; ")),
        ));
    }
    if !sidecars.missing.is_empty() {
        let names = named(sidecars.missing.iter().map(|pod| pod.name.as_str()));
        problems.push((
            "SidecarsMissing",
            format!(
                "{} application pods have no sidecar, delete them so that they are created again: {names}",
                sidecars.missing.len()
            ),
        ));
    }
    if !sidecars.stale.is_empty() {
        let names = named(sidecars.stale.iter().map(String::as_str));
        problems.push((
            "SidecarsStale",
            format!(
                "{} application pods have the sidecar of an earlier KvCluster of this name, with its data; the members refuse \
                 it. Delete these pods, so that they are created again: {names}",
                sidecars.stale.len()
            ),
        ));
    }
    problems
}

/// The first few names of a list.
fn named<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = if names.len() > MOST_NAMED { ", …" } else { "" };
    format!("{}{more}", names.take(MOST_NAMED).collect::<Vec<_>>().join(", "))
}

/// That a node was killed for lack of memory, and what to do.
pub(crate) fn killed(node: &str, at: Timestamp) -> String {
    format!(
        "{node} was killed at {at} because it was out of memory: raise spec.resources.limits.memory, or lower spec.maxMemory so \
         that writes are refused before the limit"
    )
}
