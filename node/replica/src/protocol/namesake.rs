//! Which process has a name, when two claim it.
//!
//! A restart takes the seat of the process that it replaces. A duplicate, a second process that was given the name of a live
//! one, must not. They differ in one thing only: whether the earlier process is still heard after the later one appeared. So
//! a member that hears the earlier process gives the later one no map and says why; as long as any peer says so, the later
//! one neither asks for a map nor founds one. When no peer hears the earlier process, the later one is admitted, takes the
//! name, and ends the earlier seat. When the earlier process was heard for [`TWIN_BEATS`], the later one is refused for good.
//! The file `names` has the consequences.

use kvasir_proto::peer::v1::{Namesake as WireNamesake, SeatState};

use super::limits::{HEARD_BEATS, TWIN_BEATS};
use super::link::Link;
use super::replica::Replica;
use super::roster::Seat;
use super::types::Namesake;

impl Replica {
    /// The live process that has this node's name. Set once, when this node is refused for good: from then on it serves no
    /// client.
    pub const fn refused(&self) -> Option<Namesake> {
        self.joining.refused
    }

    /// The live process that has this node's name, as far as the peers say: it may turn out to be dead.
    pub fn namesake(&self) -> Option<Namesake> {
        self.joining.refused.or_else(|| self.outbox.links.values().find_map(|link| link.namesake))
    }

    /// Whether clients may be served: the map is there, and the name is this node's.
    pub fn serves(&self) -> bool {
        self.ready && (self.joining.refused.is_none() || planted!("replaced-still-serves"))
    }

    /// Whether this node must leave now, because it was refused and has no writes left to reissue.
    pub fn is_dismissed(&self) -> bool {
        self.joining.refused.is_some() && self.backlogs.is_empty()
    }

    /// Whether something came from the process lately. This node always hears itself.
    fn hears(&self, origin: u64) -> bool {
        let lately = |link: &Link| link.silent_beats < HEARD_BEATS || planted!("silent-process-keeps-name");
        let heard = |link: &Link| link.origin == origin && lately(link);
        origin == self.settings.origin || self.outbox.links.values().any(|link| heard(link))
    }

    /// The process that has the name of a joining peer, if it is heard here.
    pub(super) fn holder_of(&self, peer: u64) -> Option<Namesake> {
        let joining = self.roster.get(peer).filter(|seat| seat.state == SeatState::Joining)?;
        let holds = |origin: u64, seat: &Seat| {
            origin != peer && seat.name == joining.name && seat.precedes(origin, joining, peer) && self.hears(origin)
        };
        let holder = self.roster.iter().find(|(origin, seat)| holds(*origin, seat));
        holder.map(|(origin, seat)| Namesake { origin, started_ms: seat.started_ms })
    }

    /// What to send to a peer about its name.
    pub(super) fn name_for(&self, link: &Link) -> Option<WireNamesake> {
        let Namesake { origin, started_ms } = self.holder_of(link.origin)?;
        let certain = link.twin_beats >= TWIN_BEATS || planted!("refused-before-certain");
        Some(WireNamesake { origin, started_ms, for_good: certain && !planted!("refused-never-ends") })
    }

    /// Counts, at each beat, for how long each peer is silent, and for how long the holder of a joining peer's name was heard
    /// since the peer came.
    pub(super) fn count_beats(&mut self) {
        self.joining.beats = self.joining.beats.saturating_add(1);
        let me = self.settings.origin;
        let spoke = |origin: u64| {
            origin == me || self.outbox.links.values().any(|link| link.origin == origin && link.silent_beats == 0)
        };
        let twins: Vec<_> = self
            .outbox
            .links
            .iter()
            .filter(|(_, link)| self.holder_of(link.origin).is_some_and(|holder| spoke(holder.origin)))
            .map(|(&id, _)| id)
            .collect();
        for (id, link) in &mut self.outbox.links {
            link.silent_beats = link.silent_beats.saturating_add(1);
            if twins.contains(id) {
                link.twin_beats = link.twin_beats.saturating_add(1);
                self.counters.twins += u64::from(link.twin_beats == TWIN_BEATS);
            }
        }
    }

    /// Whether another process may have this node's name: a peer says so, or a seat of
    /// the name is listed and not every peer has answered yet.
    pub(super) fn name_in_doubt(&self) -> bool {
        let (me, name) = (self.settings.origin, &self.settings.name);
        let listed = || self.roster.iter().any(|(origin, seat)| origin != me && seat.name == *name && seat.is_live());
        let unanswered = || self.outbox.links.values().any(|link| !link.synced);
        self.is_dismissed()
            || self.outbox.links.values().any(|link| link.namesake.is_some() && !planted!("live-name-given-away"))
            || self.joining.beats < HEARD_BEATS && listed() && unanswered() && !planted!("name-answers-not-awaited")
    }

    /// Takes the name when this node was admitted or founded an epoch: other seats of the name end. Seats of processes that
    /// are linked and have no map stay: these processes will be refused.
    pub(super) fn claim_name(&mut self, now: u64) {
        let (me, name) = (self.settings.origin, &self.settings.name);
        let waits = |origin: u64, seat: &Seat| seat.state == SeatState::Joining && self.outbox.is_linked(origin);
        let others = self.roster.iter().filter(|(origin, seat)| *origin != me && seat.name == *name);
        let ended: Vec<u64> = others.filter(|(o, seat)| !waits(*o, seat)).map(|(origin, _)| origin).collect();
        for origin in ended.into_iter().filter(|_| !planted!("predecessor-not-ended")) {
            self.roster.replace(origin, now, self.map.standing.forgotten);
        }
    }
}
