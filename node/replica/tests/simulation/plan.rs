//! What happens in one run, drawn from its seed before it begins, so that a
//! run can be repeated with a part of it left out.

use kvasir_replica::replica::{KEPT_DELETES, MAX_ENDED, Need, REMEMBER_ENDED_MS, REMEMBER_EVICTED_MS};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// Something that a client does, or that befalls the cluster. Nodes are named
/// by their places.
#[derive(Clone, Debug)]
pub enum Op {
    /// A write at a node, to be held by others.
    Put {
        node: usize,
        key: u8,
        ttl_ms: Option<u64>,
        ack: Need,
    },
    Delete {
        node: usize,
        key: u8,
    },
    /// A session goes to a node and reads, or writes and remembers.
    Read {
        session: usize,
        node: usize,
        key: u8,
    },
    SessionPut {
        session: usize,
        node: usize,
        key: u8,
    },
    /// The connection of a pair breaks, and comes up again at once.
    Reset(usize, usize),
    /// No message gets from the first to the second.
    Block(usize, usize),
    /// Two groups, by bits, do not hear each other.
    Split(u32),
    /// All can hear each other again.
    Mend,
    /// The memory is lost; nobody is told.
    Crash(usize),
    Start(usize),
    /// Drains and goes.
    Leave(usize),
    /// The wall clock jumps, milliseconds.
    Jump(usize, i64),
    /// The cluster is meant to have so many voters from now on. Each hears of it when it looks.
    Scale(usize),
    Look(usize),
    Nothing,
}

// Each flag is a fact of its own: no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Whether peers find each other by the production membership, and are
    /// linked only to whom it lists. Otherwise all that can talk are linked at
    /// once, which is the harshest for the replica: it meets everyone in every
    /// state, with no pause. It also takes a third of the time, so most runs are
    /// of that kind.
    pub membership: bool,
    pub voters: usize,
    pub sidecars: usize,
    pub keys: u8,
    pub loss: f64,
    pub duplicate: f64,
    /// Messages take 1 to this many milliseconds each, so they overtake one another.
    pub delay_ms: u64,
    /// Messages of this pair take ten times as long.
    pub slow: (usize, usize),
    pub evict_after_ms: u64,
    /// A node has room for so many entries, and whether values that end make room.
    pub room: Option<(u64, bool)>,
    /// Which node that is. Not drawn, as with `membership`.
    pub cramped: usize,
    /// Whether it has no more room once all heals, until everything is deleted. Not drawn.
    pub stays_cramped: bool,
    /// How far a wall clock is off, milliseconds at most: all take each other's, or refuse some. Not drawn.
    pub skew_ms: i64,
    /// How long ended seats are remembered at least, milliseconds: as in production, or so short that all sessions
    /// are older. Not drawn, as with `membership`.
    pub remember_ended_ms: u64,
    /// How long evicted ones are, milliseconds: as in production, or so short that many return too late. Not drawn.
    pub remember_evicted_ms: u64,
    /// How many ended seats are remembered: as in production, or so few that some are forgotten for want of room. Not
    /// drawn.
    pub ended_seats: usize,
    /// Whether a voter that finds no ready peer serves alone after a while. Not drawn.
    pub serve_alone: bool,
    /// A place whose nodes cannot talk to the others until all heals, as if they had another key: each hears that the
    /// other is there, and no more. Not drawn.
    pub apart: Option<usize>,
    /// How many tombstones are kept for evicted nodes: as in production, or so few that some rejoin too late. Not drawn.
    pub kept_deletes: u64,
    /// Whether each step draws a number that nobody needs: when the known seeds were found, it did.
    pub draws: bool,
    /// A second process with the name of a voter, at a place after all others. Not drawn.
    pub twin: Option<Twin>,
    /// What happens, and when, milliseconds.
    pub ops: Vec<(u64, Op)>,
}

/// A second process with one name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Twin {
    /// The place of the voter whose name it has.
    pub of: usize,
    /// Nothing else happens to the cluster: whichever of the two is first is not to notice the other.
    pub calm: bool,
}

/// Clocks that are off by no more than this, milliseconds, are near enough for all to take each other's.
pub const NEAR_MS: i64 = 3_500;

/// Seeds above the default 5000 that once failed, or by which a planted bug is found.
pub const KNOWN: [u64; 30] = [
    6_421, 8_950, 9_261, 14_197, 15_412, 20_153, 20_607, 21_495, 25_080, 33_999, 35_997, 40_689, 42_307, 53_003,
    61_973, 80_525, 81_586, 88_348, 125_180, 194_734, 200_701, 273_665, 312_994, 417_245, 544_381, 598_106, 599_570,
    637_598, 885_997, 951_516,
];

/// Those that failed since steps draw only what they need.
pub const KNOWN_SINCE: [u64; 5] = [209_097, 354_821, 574_770, 712_433, 984_881];

/// A planted bug is found by it as long as the number of voters stays.
const OF_ONE_SIZE: u64 = 9_261;

impl Plan {
    /// Whether the number of voters changes.
    pub fn scales(&self) -> bool {
        self.ops.iter().any(|(_, op)| matches!(op, Op::Scale(_)))
    }

    /// Whether deletes are remembered for as long as an evicted node may bring writes along.
    pub const fn remembers_deletes(&self) -> bool {
        self.kept_deletes == KEPT_DELETES
            && self.remember_evicted_ms == REMEMBER_EVICTED_MS
            && self.ended_seats == MAX_ENDED
            && self.room.is_none()
            // A process that was replaced is remembered for less long than one that was evicted.
            && (self.twin.is_none() || self.remember_ended_ms == REMEMBER_ENDED_MS)
    }

    /// How far two clocks are apart at most, milliseconds, with some room.
    pub const fn apart_ms(&self) -> u64 {
        2 * self.skew_ms.unsigned_abs() + 1_000
    }

    /// The plan of a seed, which also decides whether there is `membership` if
    /// that is not given.
    pub fn new(seed: u64, membership: Option<bool>) -> Self {
        // Not drawn: the other seeds mean what they meant before there was this choice.
        let membership = membership.unwrap_or(seed % 10 == 3);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let rng = &mut rng;
        let voters = rng.random_range(2..=5);
        let sidecars = if rng.random_bool(0.4) { rng.random_range(1..=2) } else { 0 };
        let size = voters + sidecars;
        let calm = rng.random_bool(0.3);
        let mut plan = Self {
            seed,
            membership,
            voters,
            sidecars,
            keys: rng.random_range(1..=10),
            loss: if calm { 0.0 } else { rng.random_range(0.0..0.15) },
            duplicate: if calm { 0.0 } else { rng.random_range(0.0..0.15) },
            delay_ms: if rng.random_bool(0.5) { rng.random_range(1..20) } else { rng.random_range(20..400) },
            slow: (rng.random_range(0..size), rng.random_range(0..size)),
            evict_after_ms: if rng.random_bool(0.6) { rng.random_range(2_000..6_000) } else { 600_000 },
            room: rng.random_bool(0.15).then(|| (rng.random_range(2..8), rng.random_bool(0.5))),
            cramped: if seed % 3 == 1 { (seed / 3) as usize % size } else { 0 },
            stays_cramped: seed % 4 == 1,
            skew_ms: if seed % 17 == 5 { 20_000 } else { NEAR_MS },
            remember_ended_ms: if seed.is_multiple_of(2) { 1_000 + seed % 7 * 2_000 } else { REMEMBER_ENDED_MS },
            remember_evicted_ms: if seed % 4 == 2 { 1_000 + seed % 5 * 3_000 } else { REMEMBER_EVICTED_MS },
            ended_seats: if seed % 13 == 4 || seed % 16 == 3 { 1 + (seed / 16 % 4) as usize } else { MAX_ENDED },
            serve_alone: seed % 5 < 3 || KNOWN.contains(&seed) || KNOWN_SINCE.contains(&seed),
            apart: None,
            kept_deletes: if seed % 9 == 8 { seed / 9 % 4 } else { KEPT_DELETES },
            draws: KNOWN.contains(&seed),
            twin: None,
            ops: Vec::new(),
        };
        let writes = rng.random_range(10..120);
        let troubles = rng.random_range(0..14);
        let end_ms = rng.random_range(4_000..30_000);
        for _ in 0..writes {
            let at = rng.random_range(0..end_ms);
            let node = rng.random_range(0..size);
            let key = rng.random_range(0..plan.keys);
            let session = rng.random_range(0..3);
            let op = match rng.random_range(0..10) {
                0..4 => Op::Put {
                    node,
                    key,
                    ttl_ms: rng.random_bool(0.2).then(|| rng.random_range(1..8_000)),
                    ack: Need::Count(rng.random_range(0..3)),
                },
                4..7 => Op::Delete { node, key },
                7 => Op::SessionPut { session, node, key },
                _ => Op::Read { session, node, key },
            };
            plan.ops.push((at, op));
        }
        for _ in 0..troubles {
            let at = rng.random_range(0..end_ms);
            let (a, b) = (rng.random_range(0..size), rng.random_range(0..size));
            let op = match rng.next_u32() % 16 {
                0..2 => Op::Reset(a, b),
                2..4 => Op::Block(a, b),
                4..8 => Op::Split(rng.random_range(1..1 << size)),
                8..10 => Op::Mend,
                10..13 => {
                    // Most come back; some soon, some late.
                    plan.ops.push((at + rng.random_range(10..12_000), Op::Start(a)));
                    Op::Crash(a)
                }
                13 => {
                    plan.ops.push((at + rng.random_range(10..12_000), Op::Start(a)));
                    Op::Leave(a)
                }
                14 => Op::Jump(a, rng.random_range(-3_000..3_000)),
                _ => Op::Nothing,
            };
            plan.ops.push((at, op));
        }
        plan.add(end_ms);
        // Where they may found an empty map beside the others' they do, which is what was asked for.
        if !plan.serve_alone && seed % 3 == 2 {
            plan.apart = Some((seed / 15) as usize % plan.voters);
        }
        let scales = plan.ops.iter().any(|(_, op)| matches!(op, Op::Scale(_)));
        // A full node may stay full, and a process that lost its name then waits for it with what it has to hand over.
        if matches!(seed % 9, 4 | 7) && !scales && plan.room.is_none() && !plan.is_known() {
            plan.add_twin(end_ms);
        }
        plan.ops.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Whether it was found with the operations that it had then.
    fn is_known(&self) -> bool {
        KNOWN.contains(&self.seed) || KNOWN_SINCE.contains(&self.seed)
    }

    /// One node is cut off until it is evicted, and longer. Keys are written there, and deleted by the others.
    fn cut_off_past_eviction(&mut self) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0xcafe);
        let size = self.voters + self.sidecars;
        let away = rng.random_range(0..size);
        self.evict_after_ms = rng.random_range(2_000..5_000);
        let cut = rng.random_range(2_000..8_000);
        let heals = cut + self.evict_after_ms + rng.random_range(4_000..20_000);
        self.ops.push((cut, Op::Split(1 << away)));
        for key in 0..self.keys {
            let other = (away + rng.random_range(1..size)) % size;
            self.ops
                .push((rng.random_range(0..heals), Op::Put { node: other, key, ttl_ms: None, ack: Need::Count(1) }));
            self.ops
                .push((rng.random_range(cut..heals), Op::Put { node: away, key, ttl_ms: None, ack: Need::Count(0) }));
            self.ops.push((rng.random_range(cut..heals), Op::Delete { node: other, key }));
        }
        self.ops.push((heals, Op::Mend));
    }

    /// A twin of a voter: beside it from the start, or later, or while it is cut off; or the two come and go.
    fn add_twin(&mut self, end_ms: u64) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0x7717);
        let (of, twin) = (rng.random_range(0..self.voters), self.voters + self.sidecars);
        let kind = rng.random_range(0..5);
        self.twin = Some(Twin { of, calm: kind < 2 });
        match kind {
            0 | 1 => {
                // No link is silent for as long as a heartbeat takes.
                (self.loss, self.duplicate, self.delay_ms, self.slow) = (0.0, 0.0, self.delay_ms.min(100), (0, 0));
                let client = |op: &Op| {
                    matches!(op, Op::Put { .. } | Op::Delete { .. } | Op::Read { .. } | Op::SessionPut { .. })
                };
                self.ops.retain(|(_, op)| client(op));
                if kind == 0 {
                    self.ops.push((rng.random_range(0..400), Op::Start(twin)));
                }
                // It is started again as often as it ends.
                for _ in 0..rng.random_range(1..4) {
                    self.ops.push((rng.random_range(0..end_ms), Op::Start(twin)));
                }
            }
            2 | 3 => {
                // One is cut off, alone or with others, and replaced meanwhile. Its clients go on.
                let at = rng.random_range(500..end_ms);
                let others = if rng.random_bool(0.5) { rng.random_range(0..1 << twin) } else { 0 };
                let started = at + rng.random_range(100..9_000);
                self.ops.push((at, Op::Split(1 << of | others)));
                self.ops.push((started, Op::Start(twin)));
                if rng.random_bool(0.6) {
                    self.ops.push((started + rng.random_range(0..12_000), Op::Mend));
                }
                for _ in 0..rng.random_range(0..20) {
                    let (node, key) = (if rng.random_bool(0.5) { of } else { twin }, rng.random_range(0..self.keys));
                    let at = at + rng.random_range(0..20_000);
                    let ack = Need::Count(rng.random_range(0..2));
                    let put = Op::Put { node, key, ttl_ms: None, ack };
                    self.ops.push((at, if rng.random_bool(0.7) { put } else { Op::Delete { node, key } }));
                }
            }
            _ => {
                for _ in 0..rng.random_range(1..8) {
                    let place = if rng.random_bool(0.5) { of } else { twin };
                    let op = match rng.random_range(0..5) {
                        0 => Op::Crash(place),
                        1 => Op::Leave(place),
                        2 => Op::Reset(of, twin),
                        _ => Op::Start(place),
                    };
                    self.ops.push((rng.random_range(0..end_ms), op));
                }
                self.ops.push((rng.random_range(0..end_ms), Op::Start(twin)));
            }
        }
        // A majority that one of the two is part of is the only one: see "What is not" in docs/replication.md.
        let voters: u32 = (1 << self.voters) - 1;
        for (_, op) in &mut self.ops {
            let Op::Split(side) = op else { continue };
            let with = *side >> of & 1;
            let mine = if with == 1 { *side } else { !*side } & voters;
            let to = if mine.count_ones() as usize > self.voters / 2 { with } else { 1 - with };
            *side = *side & !(1 << twin) | to << twin;
        }
    }

    /// What is drawn apart from the rest, which stays as it was before there was this.
    fn add(&mut self, end_ms: u64) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0xadd);
        for (_, op) in &mut self.ops {
            if let Op::Put { ack, .. } = op
                && rng.random_bool(0.3)
            {
                *ack = if rng.random_bool(0.5) { Need::Majority } else { Need::All };
            }
        }
        if self.skew_ms > 10_000 {
            for _ in 0..rng.random_range(1..5) {
                let node = rng.random_range(0..self.voters + self.sidecars);
                self.ops.push((rng.random_range(0..end_ms), Op::Jump(node, rng.random_range(-20_000..20_000))));
            }
        }
        if self.seed % 7 == 3 && !self.is_known() {
            self.cut_off_past_eviction();
        }
        if matches!(self.seed % 11, 6 | 10) && self.seed != OF_ONE_SIZE {
            for _ in 0..rng.random_range(1..4) {
                let (at, voters) = (rng.random_range(0..end_ms), rng.random_range(1..=self.voters));
                self.ops.push((at, Op::Scale(voters)));
                for place in 0..self.voters {
                    // The configuration may come before or after the nodes do, or go.
                    let mut soon = || at + rng.random_range(0..8_000);
                    self.ops.push((soon(), Op::Look(place)));
                    self.ops.push((soon(), if place < voters { Op::Start(place) } else { Op::Leave(place) }));
                }
            }
        }
    }
}
