//! Whether members refuse writes before the kernel kills them for their memory.
//!
//! Knows nothing of how `maxMemory` is derived: a member does that from the memory limit of its container, which may come from a
//! `LimitRange`, and reports the result.

use std::collections::BTreeMap;

use crate::reconcile::poll::Answers;

/// Nothing limits the entries of a member.
const UNLIMITED: &str = "MemoryUnlimited";
/// The entries of a member may take more than fits into its container.
const LIMIT_LOW: &str = "MemoryLimitLow";
/// The memory of every member that answers is bounded.
const BOUNDED: &str = "Bounded";

/// Whether memory is bounded, the reason, and what to do; `None` if no member answers.
pub(super) fn bounded(answers: &Answers) -> Option<(bool, &'static str, String)> {
    let answers: Vec<_> =
        answers.iter().filter_map(|(member, answer)| Some((member.as_str(), answer.as_ref().ok()?))).collect();
    if answers.is_empty() {
        return None;
    }
    let mut concerns: BTreeMap<(bool, String), Vec<&str>> = BTreeMap::new();
    for (member, status) in &answers {
        let limited = status.max_memory_bytes > 0;
        let concern = match &status.memory_concern {
            // A member of an old release, which does not report this, has no limit either.
            _ if !limited => {
                "members have no limit on the memory of their entries, so that a full container or machine ends \
                              them with all that they hold: set spec.resources.limits.memory, or spec.maxMemory"
                    .to_owned()
            }
            Some(concern) => concern.clone(),
            None => continue,
        };
        concerns.entry((limited, concern)).or_default().push(member);
    }
    // Members without any limit come first.
    let Some(((limited, concern), members)) = concerns.into_iter().next() else {
        return Some((true, BOUNDED, "a member that is full refuses writes before it is out of memory".to_owned()));
    };
    let reason = if limited { LIMIT_LOW } else { UNLIMITED };
    // If all members agree, the message names none of them: otherwise one lost answer would change it.
    let message = if members.len() == answers.len() { concern } else { format!("{}: {concern}", members.join(", ")) };
    Some((false, reason, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::poll::{NodeStatus, PollError};

    fn look(members: &[(u64, Option<&str>)]) -> Option<(bool, &'static str, String)> {
        let answer = |(at, (max_memory_bytes, concern)): (usize, &(u64, Option<&str>))| {
            let memory_concern = concern.map(str::to_owned);
            let status = NodeStatus { max_memory_bytes: *max_memory_bytes, memory_concern, ..NodeStatus::default() };
            (format!("demo-{at}"), Ok(status))
        };
        bounded(&members.iter().enumerate().map(answer).collect())
    }

    #[test]
    fn memory_bounded_by_what_members_say() {
        assert_eq!(look(&[(1, None), (2, None)]).map(|found| found.1), Some(BOUNDED));
        let (holds, reason, message) = look(&[(0, Some("its own words")), (0, None)]).unwrap();
        assert!(!holds && reason == UNLIMITED, "{reason}");
        assert!(message.contains("set spec.resources.limits.memory, or spec.maxMemory") && !message.contains("demo"));
        assert_eq!(
            look(&[(5, Some("lower it")), (5, Some("lower it"))]),
            Some((false, LIMIT_LOW, "lower it".to_owned()))
        );
        let (_, reason, message) = look(&[(5, None), (5, Some("lower it"))]).unwrap();
        assert_eq!((reason, message.as_str()), (LIMIT_LOW, "demo-1: lower it"));
        assert_eq!(look(&[(5, Some("lower it")), (0, None)]).map(|found| found.1), Some(UNLIMITED));
    }

    #[test]
    fn memory_is_unknown_without_answers() {
        assert_eq!(look(&[]), None);
        assert_eq!(bounded(&Answers::from([("demo-0".to_owned(), Err(PollError::Timeout))])), None);
    }
}
