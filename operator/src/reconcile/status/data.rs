//! The map that the members hold, and whether an earlier one was lost.
//!
//! Each map has an epoch. If the members report another epoch than before, they founded an empty map, unless one of them
//! carried the earlier map over: when two separate maps merge, the later epoch stays. A process keeps what it holds for as long
//! as it runs. So if a process that held the earlier map is in the later one, nothing was lost.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use kvasir_crds::{DataStatus, KvClusterStatus, LostData, MemberStatus};

use super::{
    observed::Observed,
    verdict::{Problem, whole_seconds},
};
use crate::{names, reconcile::poll::NodeStatus};

/// How long a loss is part of the Degraded condition, unless it is acknowledged before.
pub(super) const LOSS_SHOWN: SignedDuration = SignedDuration::from_hours(1);
/// Reason of the condition and of the event.
pub(crate) const DATA_LOST: &str = "DataLost";

/// The epoch of the map that a member holds, if it holds one.
pub(super) fn founded(status: &NodeStatus) -> Option<MicroTime> {
    let founding = status.founding.filter(|_| matches!(status.phase.as_str(), "ready" | "draining"))?;
    // The API server accepts no time before the year 0.
    Timestamp::from_millisecond(founding.at_ms.max(0)).ok().map(MicroTime)
}

/// What is known of the map after this observation.
pub(super) fn data(observed: &Observed, before: &KvClusterStatus, now: &[MemberStatus]) -> Option<DataStatus> {
    let mut held: BTreeMap<MicroTime, i64> = BTreeMap::new();
    for status in observed.all_answers() {
        if let Some(founding) = founded(status) {
            let most = held.entry(founding).or_default();
            *most = (*most).max(i64::try_from(status.keys).unwrap_or(i64::MAX));
        }
    }
    let Some((latest, &keys)) = held.last_key_value() else {
        // No member has a map now. The last known map is kept, as a later loss is measured by it.
        return before.data.clone();
    };
    let Some(known) = &before.data else {
        return Some(DataStatus { founded_at: latest.clone(), keys, lost: None });
    };
    let mut known = known.clone();
    if let Some(lost) =
        known.lost.take_if(|lost| held.contains_key(&lost.founded_at) || carried(observed, before, &lost.founded_at))
    {
        // The map was not lost: a member that did not answer has held it all the time.
        known = DataStatus { founded_at: lost.founded_at, keys: lost.keys, lost: None };
    }
    if let Some(&keys) = held.get(&known.founded_at) {
        return Some(DataStatus { keys, ..known });
    }
    // A ready member that does not answer and last held this map may hold it still.
    if now.iter().any(|member| member.silent_since.is_some() && member.founded_at.as_ref() == Some(&known.founded_at)) {
        return Some(known);
    }
    if known.keys > 0 && !carried(observed, before, &known.founded_at) {
        let noticed_at = Time(whole_seconds(observed.now));
        known.lost = Some(LostData { founded_at: known.founded_at, keys: known.keys, noticed_at });
    }
    Some(DataStatus { founded_at: latest.clone(), keys, lost: known.lost })
}

/// Whether a process that held the map of this epoch is still running and holds another map now.
fn carried(observed: &Observed, before: &KvClusterStatus, founding: &MicroTime) -> bool {
    let holders = || before.members.iter().filter(|member| member.founded_at.as_ref() == Some(founding));
    observed.all_answers().filter(|status| founded(status).is_some()).any(|status| {
        let mut origins = std::iter::once(&status.origin).chain(&status.former_origins);
        origins.any(|origin| holders().any(|holder| holder.origin.as_ref() == Some(origin)))
    })
}

/// A loss that the condition shows.
pub(super) fn problem(observed: &Observed, data: Option<&DataStatus>) -> Option<Problem> {
    let data = data?;
    let lost = data.lost.as_ref()?;
    let acknowledged = observed.cluster.annotations().get(names::ACKNOWLEDGE_DATA_LOSS);
    let is_acknowledged = acknowledged
        .and_then(|value| value.parse::<Timestamp>().ok())
        .is_some_and(|founded_at| founded_at == lost.founded_at.0);
    if is_acknowledged || observed.now.duration_since(lost.noticed_at.0) >= LOSS_SHOWN {
        return None;
    }
    Some((DATA_LOST, describe(&observed.cluster.name_any(), data, lost)))
}

/// What was lost and what to do, for condition and event.
pub(crate) fn describe(cluster: &str, data: &DataStatus, lost: &LostData) -> String {
    format!(
        "the map founded at {} with {} keys is gone, as no member that held it is left; members began an empty one at {}: \
         write again what clients need, and see the Redundant condition for how to keep a copy. To acknowledge: \
         kubectl annotate --overwrite kvcluster {cluster} {}={}",
        lost.founded_at.0,
        lost.keys,
        data.founded_at.0,
        names::ACKNOWLEDGE_DATA_LOSS,
        lost.founded_at.0
    )
}
