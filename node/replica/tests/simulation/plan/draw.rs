//! The plan of a seed.
//!
//! Draws that were added later have their own generators, or follow from the seed, so that the other draws, and most
//! seeds, keep their meaning.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::{NEAR_MS, Op, Plan, Room, Twin};
use crate::prelude::*;

/// While a Sync is lost, which takes five seconds to notice, a node may switch back and forth between two epochs.
const MAX_RESETS: u64 = 40;

impl Plan {
    /// The plan of a seed, which also decides whether there is `membership` if that is not given.
    pub fn new(seed: u64, membership: Option<bool>) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut plan = Self::of_cluster(seed, membership.unwrap_or(seed % 10 == 3), rng);
        let writes = rng.random_range(10..120);
        let faults = rng.random_range(0..14);
        let end_ms = rng.random_range(4_000..30_000);
        plan.draw_writes(writes, end_ms, rng);
        plan.draw_faults(faults, end_ms, rng);
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed ^ 0xadd);
        plan.draw_acks(rng);
        if plan.skew_ms > 10_000 {
            plan.draw_far_clocks(end_ms, rng);
        }
        if seed % 7 == 3 {
            plan.cut_off_past_eviction();
        }
        if matches!(seed % 11, 6 | 10) {
            plan.draw_scaling(end_ms, rng);
        }
        // With `serve_alone`, a node founds although others exist, on purpose.
        if !plan.serve_alone && seed % 3 == 2 {
            plan.apart = Some((seed / 15) as usize % plan.voters);
        }
        // While a node stays full, a process that lost its name waits for that node to cover what it hands over. Where the
        // number of voters changes, both sides of a split may have a majority, see `draw_twin`.
        if matches!(seed % 9, 4 | 7) && !plan.room.is_some_and(|room| room.stays) && !plan.scales() {
            plan.draw_twin(end_ms);
        }
        plan.ops.sort_by_key(|(at, _)| *at);
        plan
    }

    /// The cluster, its network and its settings. Nothing happens yet.
    fn of_cluster(seed: u64, membership: bool, rng: &mut Xoshiro256PlusPlus) -> Self {
        let voters = rng.random_range(2..=5);
        let sidecars = if rng.random_bool(0.4) { rng.random_range(1..=2) } else { 0 };
        let size = voters + sidecars;
        let calm = rng.random_bool(0.3);
        Self {
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
            room: rng.random_bool(0.15).then(|| Room {
                node: if seed % 3 == 1 { (seed / 3) as usize % size } else { 0 },
                entries: rng.random_range(2..8),
                evict_ending: rng.random_bool(0.5),
                stays: seed % 4 == 1,
            }),
            skew_ms: if seed % 17 == 5 { 20_000 } else { NEAR_MS },
            remember_ended_ms: if seed.is_multiple_of(2) { 1_000 + seed % 7 * 2_000 } else { REMEMBER_ENDED_MS },
            remember_evicted_ms: if seed % 4 == 2 { 1_000 + seed % 5 * 3_000 } else { REMEMBER_EVICTED_MS },
            ended_seats: if seed % 13 == 4 || seed % 16 == 3 { 1 + (seed / 16 % 4) as usize } else { MAX_ENDED },
            kept_deletes: if seed % 9 == 8 { seed / 9 % 4 } else { KEPT_DELETES },
            serve_alone: seed % 5 < 3,
            apart: None,
            twin: None,
            max_resets: MAX_RESETS,
            ops: Vec::new(),
        }
    }

    const fn size(&self) -> usize {
        self.voters + self.sidecars
    }

    fn draw_writes(&mut self, count: usize, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        for _ in 0..count {
            let at = rng.random_range(0..end_ms);
            let node = rng.random_range(0..self.size());
            let key = rng.random_range(0..self.keys);
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
            self.ops.push((at, op));
        }
    }

    fn draw_faults(&mut self, count: usize, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        let size = self.size();
        for _ in 0..count {
            let at = rng.random_range(0..end_ms);
            let (a, b) = (rng.random_range(0..size), rng.random_range(0..size));
            let op = match rng.next_u32() % 16 {
                0..2 => Op::Reconnect(a, b),
                2..4 => Op::Block(a, b),
                4..8 => Op::Split(rng.random_range(1..1 << size)),
                8..10 => Op::Unblock,
                // Most nodes start again; some soon, some late.
                10..13 => {
                    self.ops.push((at + rng.random_range(10..12_000), Op::Start(a)));
                    Op::Crash(a)
                }
                13 => {
                    self.ops.push((at + rng.random_range(10..12_000), Op::Start(a)));
                    Op::Leave(a)
                }
                14 => Op::Jump(a, rng.random_range(-3_000..3_000)),
                _ => continue,
            };
            self.ops.push((at, op));
        }
    }

    fn draw_acks(&mut self, rng: &mut Xoshiro256PlusPlus) {
        for (_, op) in &mut self.ops {
            if let Op::Put { ack, .. } = op
                && rng.random_bool(0.3)
            {
                *ack = if rng.random_bool(0.5) { Need::Majority } else { Need::All };
            }
        }
    }

    fn draw_far_clocks(&mut self, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        for _ in 0..rng.random_range(1..5) {
            let node = rng.random_range(0..self.size());
            self.ops.push((rng.random_range(0..end_ms), Op::Jump(node, rng.random_range(-20_000..20_000))));
        }
    }

    /// One node is cut off until after its eviction. It writes keys, and the others delete them.
    fn cut_off_past_eviction(&mut self) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0xcafe);
        let size = self.size();
        let away = rng.random_range(0..size);
        self.evict_after_ms = rng.random_range(2_000..5_000);
        let cut = rng.random_range(2_000..8_000);
        let heals = cut + self.evict_after_ms + rng.random_range(4_000..20_000);
        self.ops.push((cut, Op::Split(1 << away)));
        for key in 0..self.keys {
            let other = (away + rng.random_range(1..size)) % size;
            let put = |node, ack| Op::Put { node, key, ttl_ms: None, ack: Need::Count(ack) };
            self.ops.push((rng.random_range(0..heals), put(other, 1)));
            self.ops.push((rng.random_range(cut..heals), put(away, 0)));
            self.ops.push((rng.random_range(cut..heals), Op::Delete { node: other, key }));
        }
        self.ops.push((heals, Op::Unblock));
    }

    /// The number of voters changes, and nodes start or leave accordingly.
    fn draw_scaling(&mut self, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        for _ in 0..rng.random_range(1..4) {
            let (at, voters) = (rng.random_range(0..end_ms), rng.random_range(1..=self.voters));
            self.ops.push((at, Op::Scale(voters)));
            for place in 0..self.voters {
                // A node may be configured before or after another one starts or leaves.
                let mut soon = || at + rng.random_range(0..8_000);
                self.ops.push((soon(), Op::Configure(place)));
                self.ops.push((soon(), if place < voters { Op::Start(place) } else { Op::Leave(place) }));
            }
        }
    }

    /// A twin of a voter: concurrent with the voter, in its place while it is cut off, or alternating with it.
    fn draw_twin(&mut self, end_ms: u64) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(self.seed ^ 0x7717);
        let (of, twin) = (rng.random_range(0..self.voters), self.size());
        let kind = rng.random_range(0..5);
        self.twin = Some(Twin { of, calm: kind < 2 });
        match kind {
            0 | 1 => self.draw_concurrent_twin(kind == 0, end_ms, rng),
            2 | 3 => self.draw_replacing_twin(of, end_ms, rng),
            _ => self.draw_alternating_twin(of, end_ms, rng),
        }
        // At most one majority may have one of the two in it: see "What is not" in docs/replication.md.
        let voters: u32 = (1 << self.voters) - 1;
        for (_, op) in &mut self.ops {
            let Op::Split(side) = op else { continue };
            let with = *side >> of & 1;
            let mine = if with == 1 { *side } else { !*side } & voters;
            let to = if mine.count_ones() as usize > self.voters / 2 { with } else { 1 - with };
            *side = *side & !(1 << twin) | to << twin;
        }
    }

    /// The twin is started as often as it exits, and nothing else happens.
    fn draw_concurrent_twin(&mut self, early: bool, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        let twin = self.size();
        // No link is silent for as long as a heartbeat takes.
        (self.loss, self.duplicate, self.delay_ms, self.slow) = (0.0, 0.0, self.delay_ms.min(100), (0, 0));
        let by_client =
            |op: &Op| matches!(op, Op::Put { .. } | Op::Delete { .. } | Op::Read { .. } | Op::SessionPut { .. });
        self.ops.retain(|(_, op)| by_client(op));
        if early {
            self.ops.push((rng.random_range(0..400), Op::Start(twin)));
        }
        for _ in 0..rng.random_range(1..4) {
            self.ops.push((rng.random_range(0..end_ms), Op::Start(twin)));
        }
    }

    /// The voter is cut off, alone or with others, and replaced meanwhile. Clients go on writing to both.
    fn draw_replacing_twin(&mut self, of: usize, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        let twin = self.size();
        let at = rng.random_range(500..end_ms);
        let others = if rng.random_bool(0.5) { rng.random_range(0..1 << twin) } else { 0 };
        let started = at + rng.random_range(100..9_000);
        self.ops.push((at, Op::Split(1 << of | others)));
        self.ops.push((started, Op::Start(twin)));
        if rng.random_bool(0.6) {
            self.ops.push((started + rng.random_range(0..12_000), Op::Unblock));
        }
        for _ in 0..rng.random_range(0..20) {
            let (node, key) = (if rng.random_bool(0.5) { of } else { twin }, rng.random_range(0..self.keys));
            let at = at + rng.random_range(0..20_000);
            let ack = Need::Count(rng.random_range(0..2));
            let put = Op::Put { node, key, ttl_ms: None, ack };
            self.ops.push((at, if rng.random_bool(0.7) { put } else { Op::Delete { node, key } }));
        }
    }

    fn draw_alternating_twin(&mut self, of: usize, end_ms: u64, rng: &mut Xoshiro256PlusPlus) {
        let twin = self.size();
        for _ in 0..rng.random_range(1..8) {
            let place = if rng.random_bool(0.5) { of } else { twin };
            let op = match rng.random_range(0..5) {
                0 => Op::Crash(place),
                1 => Op::Leave(place),
                2 => Op::Reconnect(of, twin),
                _ => Op::Start(place),
            };
            self.ops.push((rng.random_range(0..end_ms), op));
        }
        self.ops.push((rng.random_range(0..end_ms), Op::Start(twin)));
    }
}
