//! Whether a write is held here, and by which other nodes.

use super::replica::Replica;
use super::types::{Coverage, Holders};
use crate::clock::{Dot, ms_of};

impl Replica {
    /// How many nodes hold this node's own write with the timestamp `hlc`. They are counted by name, so a node that restarted
    /// counts once.
    pub fn holders(&self, hlc: u64) -> Holders {
        let holders = self
            .outbox
            .links
            .values()
            .filter(|l| l.acked >= hlc || l.cursor >= Some(hlc) && planted!("sent-counts-as-held"))
            .filter(|l| l.compatible && (self.roster.is_live(l.origin) || planted!("gone-peer-holds")))
            .filter_map(|l| self.roster.get(l.origin).map(|seat| (seat.name.as_str(), seat.voter)))
            .filter(|(name, _)| *name != self.settings.name);
        let names = distinct(holders);
        let voters = names.iter().filter(|(_, voter)| *voter).count() + usize::from(self.settings.voter);
        let others = self.roster.members().filter(|&o| o != self.settings.origin).count();
        Holders { peers: names.len(), voters, lacking: others.saturating_sub(names.len()), majority: self.majority() }
    }

    /// Whether this node holds everything up to `collected`, the stability watermark of a node with a map of `epoch`. A node
    /// that was evicted meanwhile has not attested up to there.
    pub fn coverage_of_all(&self, collected: u64, epoch: (u64, u64)) -> Coverage {
        if collected == 0 {
            Coverage::Covered
        } else if epoch != self.map.standing.epoch {
            // If something was collected in both epochs, the later one stands. But if a majority here has come that far
            // without having met the other epoch, a session need not wait for nodes that may never come.
            let reached = collected <= self.map.standing.collected && !planted!("lost-epoch-awaited");
            if self.map.standing.epoch > epoch || reached { Coverage::Lost } else { Coverage::Behind }
        } else if collected <= self.map.standing.collected.max(self.map.standing.attested) {
            Coverage::Covered
        } else {
            Coverage::Behind
        }
    }

    /// Whether this node holds the write `dot`, which was seen on a node with a map of `epoch`.
    pub fn coverage(&self, dot: Dot, epoch: (u64, u64)) -> Coverage {
        if dot.hlc <= self.map.seen(dot.origin) {
            Coverage::Covered
        } else if dot.hlc <= self.map.standing.collected {
            // All nodes have taken the write in, if it is of this epoch. (A write that only an evicted node holds is neither
            // covered nor lost until the node rejoins or is retired.)
            match self.roster.get(dot.origin) {
                Some(seat) if seat.is_live() => Coverage::Behind,
                None if epoch != self.map.standing.epoch => Coverage::Lost,
                None if self.may_be_forgotten(dot)
                    && (dot.hlc <= self.known_of_all() || planted!("unheard-writer-covered")) =>
                {
                    Coverage::Covered
                }
                Some(_) | None if self.roster.awaits_return() => Coverage::Behind,
                Some(_) | None if planted!("lost-write-covered") => Coverage::Covered,
                Some(_) | None if planted!("lost-write-awaited") => Coverage::Behind,
                // The writer is gone, or no remaining node has heard of it.
                Some(_) | None => Coverage::Lost,
            }
        } else if self.roster.get(dot.origin).is_some_and(|seat| !seat.is_live())
            && !self.roster.awaits_return()
            && self.is_agreed()
        {
            Coverage::Lost
        } else if planted!("session-never-behind") {
            Coverage::Covered
        } else {
            Coverage::Behind
        }
    }

    /// Whether the seat that wrote this may have been retired since.
    fn may_be_forgotten(&self, dot: Dot) -> bool {
        planted!("unheard-writer-counts-as-retired")
            || ms_of(dot.hlc) + self.settings.bounds.remember_ended_ms <= ms_of(self.map.standing.collected)
    }

    /// Up to this timestamp, a seat that this node has not heard of wrote nothing, because its sponsor still took part then.
    fn known_of_all(&self) -> u64 {
        let ended = self.roster.iter().filter(|(_, seat)| !seat.is_live()).map(|(origin, _)| self.map.seen(origin));
        if self.roster.awaits_return() { ended.filter(|&seen| seen > 0).min().unwrap_or(u64::MAX) } else { u64::MAX }
    }
}

/// Each name once, with whether it is a voter's: a node and its earlier process have one name.
fn distinct<'a>(holders: impl Iterator<Item = (&'a str, bool)>) -> Vec<(&'a str, bool)> {
    let mut names: Vec<_> = holders.collect();
    names.sort_unstable();
    if !planted!("restart-holds-twice") {
        names.dedup_by_key(|(name, _)| *name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_counted_by_name() {
        let holders = [("n2", false), ("n1", true), ("n2", false)];
        assert_eq!(distinct(holders.into_iter()), [("n1", true), ("n2", false)]);
    }
}
