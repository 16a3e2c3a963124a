//! What peers say of who takes part.

use kvasir_proto::peer::v1::{Roster as WireRoster, Stranger};

use super::limits::MAX_SEATS;
use super::replica::Replica;
use super::roster::from_wire;
use super::types::Violation;

impl Replica {
    pub(super) fn take_roster(&mut self, roster: WireRoster, now_ms: u64) -> Result<(), Violation> {
        if roster.seats.len() > MAX_SEATS {
            return Err(Violation::Malformed);
        }
        let me = self.settings.origin;
        let mut changed = false;
        let mut ended = Vec::new();
        for seat in roster.seats {
            let (origin, seat) = from_wire(seat).ok_or(Violation::Malformed)?;
            if origin == me {
                if !seat.is_live() && !self.leaving && !planted!("evicted-goes-on") {
                    self.reset(Stranger::Ended, now_ms);
                    return Ok(());
                }
            } else if seat.is_live() {
                changed |= self.roster.take(origin, seat);
            } else {
                ended.push((origin, seat));
            }
        }
        // Before the ended seats are taken: a sponsor that has left since still took part when it admitted its member.
        if changed && self.ready {
            self.cover_admitted();
        }
        for (origin, seat) in ended {
            if !self.is_retired(origin, &seat) {
                changed |= self.roster.take(origin, seat);
            }
        }
        if changed {
            self.outbox.announce_roster();
        }
        self.settle_names(now_ms);
        Ok(())
    }
}
