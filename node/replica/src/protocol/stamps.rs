//! Impossible timestamps: those that no clock gives. One of them would be passed on and raise every clock of the cluster, until
//! no larger timestamp is left for a write.

use kvasir_proto::peer::v1::{Entry, Seat, Seen, Standing, message::Kind};

/// Below this are the timestamps of the next four thousand years; above it there is room for as many again, so that a clock that
/// was raised can still rise.
pub const STAMP_END: u64 = 1 << 63;

/// Whether each timestamp of a message is possible.
pub(super) fn are_possible(kind: &Kind) -> bool {
    match kind {
        Kind::Push(push) => push.prev.max(push.last) < STAMP_END && of_entries(&push.entries),
        Kind::Digest(digest) => digest.forgotten < STAMP_END,
        Kind::Sync(sync) => sync.began_hlc < STAMP_END && of_vector(&sync.seen) && of_standing(sync.standing.as_ref()),
        Kind::Delta(delta) => {
            of_entries(&delta.entries)
                && of_vector(&delta.seen)
                && of_standing(delta.standing.as_ref())
                && delta.roster.as_ref().is_none_or(|roster| of_seats(&roster.seats))
        }
        Kind::Ack(ack) => ack.hlc < STAMP_END,
        Kind::Report(report) => report.stable < STAMP_END && of_standing(report.standing.as_ref()),
        Kind::Roster(roster) => of_seats(&roster.seats),
    }
}

fn of_seats(seats: &[Seat]) -> bool {
    seats.iter().all(|seat| seat.since_hlc.max(seat.began_hlc).max(seat.agreed_hlc) < STAMP_END)
}

fn of_entries(entries: &[Entry]) -> bool {
    entries.iter().all(|entry| entry.hlc.max(entry.first_hlc).max(entry.replaced_hlc) < STAMP_END)
}

fn of_vector(vector: &[Seen]) -> bool {
    vector.iter().all(|seen| seen.hlc.max(seen.last).max(seen.beyond) < STAMP_END)
}

fn of_standing(standing: Option<&Standing>) -> bool {
    standing.is_none_or(|it| it.founded_hlc.max(it.collected).max(it.forgotten).max(it.vouched) < STAMP_END)
}

#[cfg(test)]
mod tests {
    use kvasir_proto::peer::v1::{Ack, Delta, Digest, Push, Report, Roster, Sync};

    use super::*;

    /// One message for each field that holds a timestamp.
    fn with(hlc: u64) -> Vec<Kind> {
        let entry = Entry { hlc, ..Entry::default() };
        let again = Entry { first_hlc: hlc, ..Entry::default() };
        let replaced = Entry { replaced_hlc: hlc, ..Entry::default() };
        let standings = [
            Standing { founded_hlc: hlc, ..Standing::default() },
            Standing { collected: hlc, ..Standing::default() },
            Standing { forgotten: hlc, ..Standing::default() },
            Standing { vouched: hlc, ..Standing::default() },
        ];
        let vectors = [
            Seen { hlc, ..Seen::default() },
            Seen { last: hlc, ..Seen::default() },
            Seen { beyond: hlc, ..Seen::default() },
        ];
        let mut all = vec![
            Kind::Push(Push { prev: hlc, ..Push::default() }),
            Kind::Push(Push { last: hlc, ..Push::default() }),
            Kind::Push(Push { entries: vec![Entry::default(), entry.clone()], ..Push::default() }),
            Kind::Delta(Delta { entries: vec![entry], ..Delta::default() }),
            Kind::Delta(Delta { entries: vec![again], ..Delta::default() }),
            Kind::Push(Push { entries: vec![replaced], ..Push::default() }),
            Kind::Digest(Digest { forgotten: hlc, ..Digest::default() }),
            Kind::Ack(Ack { hlc }),
            Kind::Report(Report { stable: hlc, ..Report::default() }),
            Kind::Sync(Sync { began_hlc: hlc, ..Sync::default() }),
        ];
        let seats = [
            Seat { since_hlc: hlc, ..Seat::default() },
            Seat { began_hlc: hlc, ..Seat::default() },
            Seat { agreed_hlc: hlc, ..Seat::default() },
        ];
        for roster in seats.map(|seat| Roster { seats: vec![seat] }) {
            all.push(Kind::Delta(Delta { roster: Some(roster.clone()), ..Delta::default() }));
            all.push(Kind::Roster(roster));
        }
        for standing in standings.map(Some) {
            all.push(Kind::Sync(Sync { standing, ..Sync::default() }));
            all.push(Kind::Delta(Delta { standing, ..Delta::default() }));
            all.push(Kind::Report(Report { standing, ..Report::default() }));
        }
        for seen in vectors.map(|seen| vec![seen]) {
            all.push(Kind::Sync(Sync { seen: seen.clone(), ..Sync::default() }));
            all.push(Kind::Delta(Delta { seen, ..Delta::default() }));
        }
        all
    }

    #[test]
    fn impossible_timestamps_are_found_in_every_field() {
        assert!(with(STAMP_END - 1).iter().all(are_possible));
        for kind in with(STAMP_END) {
            assert!(!are_possible(&kind), "{kind:?}");
        }
    }
}
