//! What clients do to the map.

use std::num::NonZeroU64;

use bytes::Bytes;

use super::log::{Others, Own};
use super::replica::Replica;
use super::types::Full;
use super::vector::Cover;
use crate::clock::Dot;
use crate::store::{Record, Store};

impl Replica {
    /// Writes a value that ends at `expires_ms`, if that is given.
    ///
    /// Key and value must own their memory, see [`Store::merge`].
    pub fn put(&mut self, key: Bytes, value: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Result<Dot, Full> {
        if let Some(limit) = self.settings.max_memory {
            let cost = Store::cost_of(key.len(), value.len());
            if !self.make_room(&key, cost, limit, now_ms) {
                return Err(Full { cost, held: self.map.store.memory(), limit });
            }
        }
        Ok(self.write(key, Some(value), expires_ms, None, now_ms))
    }

    /// Deletes a key. `None` when nothing was there.
    pub fn delete(&mut self, key: Bytes, now_ms: u64) -> Option<Dot> {
        self.map.store.get(&key)?.live(now_ms)?;
        Some(self.write(key, None, None, None, now_ms))
    }

    /// Gives a live value a new end, or none. `None` when nothing was there.
    pub fn touch(&mut self, key: Bytes, expires_ms: Option<u64>, now_ms: u64) -> Result<Option<Dot>, Full> {
        let live = self.map.store.get(&key).and_then(|held| Some((held.live(now_ms)?.clone(), held.expires_ms)));
        let Some((value, ends)) = live else { return Ok(None) };
        if let Some(limit) = self.settings.max_memory
            && ends.is_none()
            && expires_ms.is_some()
        {
            let cost = self.map.store.cost_at(&key) + Store::COST_OF_END;
            if !self.make_room(&key, cost, limit, now_ms) {
                return Err(Full { cost, held: self.map.store.memory(), limit });
            }
        }
        Ok(Some(self.write(key, Some(value), expires_ms, None, now_ms)))
    }

    /// Whether a record of `cost` bytes fits under the key; makes room if that is allowed. A value is removed by an ordinary
    /// delete: if only this node dropped it, it would come back.
    pub(super) fn make_room(&mut self, key: &[u8], cost: u64, limit: u64, now_ms: u64) -> bool {
        loop {
            if self.map.store.memory() - self.map.store.cost_at(key) + cost <= limit {
                return true;
            }
            let victim = self.settings.evict_ending.then(|| self.map.store.first_to_end().cloned()).flatten();
            let Some(victim) = victim.filter(|_| self.ready) else { return false };
            if planted!("evicted-locally") {
                self.map.store.remove(&victim);
            } else {
                self.write(victim, None, None, None, now_ms);
            }
            self.counters.evicted_keys += 1;
        }
    }

    pub(super) fn write(
        &mut self,
        key: Bytes,
        value: Option<Bytes>,
        expires_ms: Option<u64>,
        first: Option<Dot>,
        now_ms: u64,
    ) -> Dot {
        let dot = Dot { hlc: self.clock.tick(now_ms), origin: self.settings.origin };
        let others = |held: &Dot| held.origin != dot.origin && held.hlc > self.map.standing.collected;
        let replaced = self.map.store.get(&key).map(|held| held.dot).filter(others);
        let own = Own {
            hlc: dot.hlc,
            key: key.clone(),
            value: value.clone(),
            expires_ms: expires_ms.and_then(NonZeroU64::new),
            others: (first.is_some() || replaced.is_some())
                .then(|| Box::new(Others { first: first.unwrap_or_default(), replaced: replaced.unwrap_or_default() })),
        };
        if value.is_some() || !planted!("delete-not-pushed") {
            self.outbox.log.append(own);
        }
        let took =
            self.map.merge(key, Record { dot, value, expires_ms, first: first.map(Box::new) }, &mut self.changes);
        debug_assert!(took, "a new timestamp is above everything that is held");
        self.map.vector.insert(dot.origin, Cover { seen: dot.hlc, last: dot.hlc, beyond: 0 });
        dot
    }
}
