//! Which process has a name, when two claim it.
//!
//! A restart takes the seat of the process that it replaces. A twin, a second
//! process that was given the name of one that lives, must not. They differ in
//! one thing only: whether the earlier process is still heard after the later one
//! appeared. So a member that hears the earlier process gives the later one no map
//! and says why; as long as any peer says so, the later one neither asks for a map
//! nor founds one. When no peer hears the earlier process, the later one is let in,
//! takes the name, and ends the earlier seat. When the earlier process was heard
//! for [`TWIN_BEATS`], the later one is refused for good and ends.
//!
//! A process that lost its name while it was cut off holds writes that the others
//! lack. It hands them over under a name of its own before it ends.

use kvasir_proto::peer::v1::{Namesake as WireNamesake, SeatState, Stranger};

use super::link::Link;
use super::{Replica, Seat};
use crate::clock::stamp_at;

/// A peer from which something came within this many beats is heard.
pub const HEARD_BEATS: u32 = 3;
/// A process is refused for good once the holder of its name was heard in this many
/// beats since the process came. Longer than what was on its way before can take.
pub const TWIN_BEATS: u32 = 5;

/// A process that has a name which another one claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namesake {
    /// The process.
    pub origin: u64,
    /// When its seat was taken, milliseconds since 1970 by its own clock.
    pub started_ms: u64,
}

impl Replica {
    /// The live process that has this node's name. Set once, when this node is
    /// refused for good: from then on it serves no client.
    pub const fn refused(&self) -> Option<Namesake> {
        self.refused
    }

    /// The live process that has this node's name, as far as the peers say: it may turn out to be dead.
    pub fn namesake(&self) -> Option<Namesake> {
        self.refused.or_else(|| self.links.values().find_map(|link| link.namesake))
    }

    /// Whether clients may be served: the map is there, and the name is this node's.
    pub fn serves(&self) -> bool {
        self.ready && (self.refused.is_none() || planted!("replaced-still-serves"))
    }

    /// Whether this node was refused and has no writes left to reissue: it is to leave.
    pub const fn is_dismissed(&self) -> bool {
        self.refused.is_some() && self.bags.is_empty()
    }

    /// Whether something came from the process lately. This node always hears itself.
    fn hears(&self, origin: u64) -> bool {
        let lately = |link: &Link| link.silent_beats < HEARD_BEATS || planted!("silent-process-keeps-name");
        let heard = |link: &Link| link.origin == origin && lately(link);
        origin == self.settings.origin || self.links.values().any(|link| heard(link))
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

    /// What the peer is told of its name.
    pub(super) fn name_for(&self, link: &Link) -> Option<WireNamesake> {
        let Namesake { origin, started_ms } = self.holder_of(link.origin)?;
        let certain = link.twin_beats >= TWIN_BEATS || planted!("refused-before-certain");
        Some(WireNamesake { origin, started_ms, for_good: certain && !planted!("refused-never-ends") })
    }

    /// A beat has passed: counts for how long each peer is silent, and for how long the
    /// holder of a joining peer's name was heard beside it.
    pub(super) fn count_beats(&mut self) {
        self.beats = self.beats.saturating_add(1);
        let me = self.settings.origin;
        let spoke = |origin: u64| {
            origin == me || self.links.values().any(|link| link.origin == origin && link.silent_beats == 0)
        };
        let twins: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| self.holder_of(link.origin).is_some_and(|holder| spoke(holder.origin)))
            .map(|(&id, _)| id)
            .collect();
        for (id, link) in &mut self.links {
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
        let unanswered = || self.links.values().any(|link| !link.synced);
        self.is_dismissed()
            || self.links.values().any(|link| link.namesake.is_some() && !planted!("live-name-given-away"))
            || self.beats < HEARD_BEATS && listed() && unanswered() && !planted!("name-answers-not-awaited")
    }

    /// Takes note of what a peer says of this node's name.
    pub(super) fn take_name(&mut self, link: &mut Link, namesake: Option<WireNamesake>, now_ms: u64) {
        link.namesake = namesake.map(|it| Namesake { origin: it.origin, started_ms: it.started_ms });
        if let Some(holder) = link.namesake.filter(|_| namesake.is_some_and(|it| it.for_good))
            && !self.ready
            && self.refused.is_none()
        {
            self.refuse(holder, now_ms);
        }
    }

    /// The name is another's for good. What this node brings from its ended seats it
    /// reissues from a seat under a name of its own, as one that neither votes nor founds.
    fn refuse(&mut self, holder: Namesake, now_ms: u64) {
        self.refused = Some(holder);
        if planted!("replaced-drops-backlog") {
            self.bags.clear();
        }
        if !self.bags.is_empty() {
            self.settings.voter &= planted!("replaced-still-votes");
            (self.settings.may_found, self.settings.serve_alone) = (false, false);
            self.begin_anew(Stranger::Ended, now_ms);
        }
    }

    /// Of two members of this node's map that have one name, one ends. A seat of another founding is left alone until the
    /// foundings are compared: its holder may be the one that keeps its map.
    pub(super) fn settle_names(&mut self, now_ms: u64) {
        if !self.ready || planted!("predecessor-not-ended") {
            return;
        }
        let stranger = |&origin: &u64| !self.was_let_in(origin) && !planted!("names-settled-before-epochs");
        let strangers: Vec<u64> = self.roster.members().filter(stranger).collect();
        // A node that has just started may not have looked at the clock yet.
        let now = self.clock.last().max(stamp_at(now_ms));
        if !self.roster.settle_names(&strangers, now, self.forgotten) {
            return;
        }
        if !self.leaving && !self.roster.is_live(self.settings.origin) {
            // Its name was taken while it could not be heard.
            self.begin_anew(Stranger::Ended, now_ms);
        } else {
            self.roster_changed();
        }
    }

    /// The name under which a process that lost its own takes the seat `origin`.
    pub(super) fn name_of_its_own(name: &str, origin: u64) -> String {
        let name = name.split_once('~').map_or(name, |(name, _)| name);
        format!("{name}~{origin:016x}")
    }

    /// This node was let in, or founded: the name is its own, and other seats of the name
    /// end. Not those of processes that are linked and have no map: they will be refused.
    pub(super) fn own_name(&mut self, now: u64) {
        let (me, name) = (self.settings.origin, &self.settings.name);
        let waits = |origin: u64, seat: &Seat| seat.state == SeatState::Joining && self.is_linked(origin);
        let others = self.roster.iter().filter(|(origin, seat)| *origin != me && seat.name == *name);
        let ended: Vec<u64> = others.filter(|(o, seat)| !waits(*o, seat)).map(|(origin, _)| origin).collect();
        for origin in ended.into_iter().filter(|_| !planted!("predecessor-not-ended")) {
            self.roster.replace(origin, now, self.forgotten);
        }
    }
}
