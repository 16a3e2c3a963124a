//! The conditions Available and Progressing.

use kvasir_crds::{KvClusterStatus, condition};

use super::{
    observed::Observed,
    verdict::{NO_MEMBER_READY, Truth, Verdict, find, was_available},
};
use crate::obstacle::Obstacle;

/// Reasons of the Progressing condition.
mod reason {
    pub(super) const STARTING: &str = "Starting";
    pub(super) const SCALING: &str = "Scaling";
    pub(super) const UPDATING: &str = "Updating";
    pub(super) const DONE: &str = "RolledOut";
    pub(super) const STOPPED: &str = "Stopped";
}

pub(super) fn available(observed: &Observed, before: &KvClusterStatus, ready: i32) -> Verdict {
    let verdict = |holds, reason, message| {
        let truth = Truth::from(holds);
        Verdict { type_: condition::AVAILABLE, truth, reason, message }
    };
    let wanted = observed.cluster.spec.replicas;
    if was_available(before) {
        return if ready > 0 {
            verdict(true, "MembersReady", "members are ready and serve".to_owned())
        } else {
            verdict(false, NO_MEMBER_READY, "no member is ready: see the Degraded condition".to_owned())
        };
    }
    match &observed.obstacle {
        Some(Obstacle { reason, message }) => verdict(false, reason, message.clone()),
        None if ready >= wanted => verdict(true, "MembersReady", "members are ready and serve".to_owned()),
        None => verdict(
            false,
            reason::STARTING,
            format!("{ready} of {wanted} members are ready; the cluster serves once all were"),
        ),
    }
}

pub(super) fn progressing(observed: &Observed, before: &KvClusterStatus, replicas: i32, ready: i32) -> Verdict {
    let verdict = |holds, reason, message| {
        let truth = Truth::from(holds);
        Verdict { type_: condition::PROGRESSING, truth, reason, message }
    };
    let wanted = observed.cluster.spec.replicas;
    if let Some(obstacle) = &observed.obstacle {
        return verdict(false, reason::STOPPED, obstacle.message.clone());
    }
    let complete = replicas == wanted && ready == wanted;
    let spec = observed.stateful_set.and_then(|set| set.spec.as_ref());
    let status = observed.stateful_set.and_then(|set| set.status.as_ref());
    let scaled = spec.and_then(|spec| spec.replicas).is_some_and(|live| live != wanted);
    let updating = observed.stateful_set.is_some_and(|set| {
        let generation = status.and_then(|status| status.observed_generation);
        let revisions = status.map(|status| (&status.current_revision, &status.update_revision));
        generation < set.metadata.generation
            || revisions.is_some_and(|(current, update)| update.is_some() && current != update)
    });
    let earlier = find(&before.conditions, condition::PROGRESSING)
        .filter(|condition| condition.status == "True")
        .map(|condition| condition.reason.as_str());
    let reason = if !was_available(before) && !complete {
        reason::STARTING
    } else if scaled {
        reason::SCALING
    } else if observed.changed || (updating && earlier != Some(reason::SCALING)) {
        reason::UPDATING
    } else {
        match earlier {
            Some(reason::SCALING) if !complete => reason::SCALING,
            Some(reason::UPDATING) if !complete => reason::UPDATING,
            _ => reason::DONE,
        }
    };
    let message = match reason {
        reason::DONE => "nothing is under way".to_owned(),
        reason::SCALING => format!("scaling to {wanted} members: {replicas} exist, {ready} are ready"),
        reason::UPDATING => format!("updating members one after another: {ready} of {wanted} are ready"),
        _ => format!("{ready} of {wanted} members are ready"),
    };
    verdict(reason != reason::DONE, reason, message)
}
