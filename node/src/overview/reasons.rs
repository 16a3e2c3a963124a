//! Explains the node's state to a person: why it is in its phase, and what it waits for.

use std::sync::atomic::Ordering::Relaxed;

use super::{Observed, Overview};
use crate::engine::Phase;
use crate::replica::Namesake;
use crate::wall_clock::wall_ms;

/// How many unreached addresses are named at most.
const SHOWN: usize = 8;
/// How long a datagram of another cluster of the same name makes a node without members stale. A node that lost its
/// members looks for them every other second.
const NAMESAKE_HEARD_MS: u64 = 30_000;

impl Overview {
    /// Whether this node hears only of another cluster with its cluster's name, because its own `KvCluster` was deleted.
    pub fn is_stale(&self) -> bool {
        let heard_ms = self.counters.other_uid_ms.load(Relaxed);
        self.members.borrow().is_empty() && wall_ms().saturating_sub(heard_ms) < NAMESAKE_HEARD_MS
    }

    /// Explains why the node [is stale](Self::is_stale).
    pub fn stale_reason(&self) -> Option<String> {
        self.is_stale().then(|| {
            format!(
                "hears only of another cluster of the name `{}`, whose clusterUid is not this node's (`{}`): this node \
                 holds the data of a deleted cluster. Delete this node so that it is created again",
                self.cluster, self.cluster_uid
            )
        })
    }

    /// Why the node is in its phase.
    pub fn reason(&self) -> String {
        if let Some(stale) = self.stale_reason() {
            return stale;
        }
        if let Some(holder) = self.engine.namesake().filter(|_| self.phase() != Phase::Ready) {
            return format!("another process has this node's name: {}", self.describe(holder));
        }
        let peers = self.members.borrow().len();
        match self.phase() {
            Phase::Joining => {
                let view = self.discovery.borrow().clone();
                let failing: Vec<_> = view
                    .providers
                    .iter()
                    .filter_map(|p| p.error.as_ref().map(|error| format!("; discovery {}: {error}", p.provider)))
                    .collect();
                format!("looking for peers, knows {peers}{}", failing.concat())
            }
            Phase::Syncing => format!("receiving what its {peers} peers hold"),
            Phase::Ready => "holds what its peers hold".to_owned(),
            Phase::Draining => "shutting down".to_owned(),
        }
    }

    /// What a node that is not ready waits for, apart from peers that it cannot talk to: a line each.
    pub fn waits_for(&self) -> Vec<String> {
        if !matches!(self.phase(), Phase::Joining | Phase::Syncing) {
            return Vec::new();
        }
        let Observed { answered: _, unreached, unjoinable } = self.observed(&self.engine.linked().0);
        let unjoinable = unjoinable.into_all();
        let silent: Vec<_> = unreached
            .iter()
            .filter(|address| unjoinable.iter().all(|refusal| refusal.address != **address))
            .map(ToString::to_string)
            .collect();
        let founders = self.engine.founders();
        let shown = silent.len().min(SHOWN);
        let more = if silent.len() > shown { ", …" } else { "" };
        let silent =
            founders.filter(|_| shown > 0).map(|_| format!("does not reach {}{more}", silent[..shown].join(", ")));
        let voters =
            founders.filter(|(reached, wanted)| *wanted > 0 && *reached <= wanted / 2).map(|(reached, wanted)| {
                format!("reaches {reached} of {wanted} voters, itself included: a majority of them founds a cluster")
            });
        silent.into_iter().chain(voters).collect()
    }

    /// Describes the process that holds this node's name.
    pub fn describe(&self, Namesake { origin, started_ms }: Namesake) -> String {
        let members = self.members.borrow().clone();
        let at = members.iter().find(|member| member.id.origin == origin).map(|member| member.id.peer_address);
        let at = at.map_or_else(|| "at an unknown address".to_owned(), |at| format!("at {at}"));
        let since = wall_ms().saturating_sub(started_ms) / 1000;
        format!("{at}, origin {origin:016x}, started {since} s ago")
    }
}
