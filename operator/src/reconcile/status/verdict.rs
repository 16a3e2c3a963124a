//! A condition before it is compared with the one of the last status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{Timestamp, Unit},
};
use kvasir_crds::{KvClusterStatus, condition};

/// Reason of Available and Redundant for a cluster that was complete once and has no ready member left.
pub(super) const NO_MEMBER_READY: &str = "NoMemberReady";
/// Reason of a condition that cannot be determined, because something could not be read.
pub(super) const NOT_SEEN: &str = "NotSeen";

/// Something that is wrong: its reason, and what to do.
pub(super) type Problem = (&'static str, String);

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition without its times.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) type_: &'static str,
    pub(super) truth: Truth,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Verdict {
    /// The condition; its transition time changes only with its status.
    pub(super) fn condition(self, before: &[Condition], generation: i64, now: Timestamp) -> Condition {
        let status = match self.truth {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        };
        let since = find(before, self.type_)
            .filter(|before| before.status == status)
            .map_or_else(|| Time(whole_seconds(now)), |before| before.last_transition_time.clone());
        Condition {
            type_: self.type_.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            observed_generation: Some(generation),
            last_transition_time: since,
        }
    }
}

/// Rounds to whole seconds, as the API server stores times.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

/// Whether the cluster was complete once.
pub(super) fn was_available(before: &KvClusterStatus) -> bool {
    find(&before.conditions, condition::AVAILABLE)
        .is_some_and(|available| available.status == "True" || available.reason == NO_MEMBER_READY)
}

/// Whether a condition exists and is true.
pub fn holds(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}
