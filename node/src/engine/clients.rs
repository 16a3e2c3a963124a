//! Reads and writes of clients.

use std::time::Duration;

use bytes::Bytes;
use tracing::{info, warn};

use super::scan::{LIST_STEP, live};
use super::{Engine, Inner, Page, Phase, Read, ReadError, WriteError};
use crate::clock::Dot;
use crate::session::Session;
use crate::wall_clock::{millis, wall_ms};

impl Engine {
    /// Writes a value that ends after `ttl`, if there is one.
    pub fn put(&self, key: &str, value: &Bytes, ttl: Option<Duration>) -> Result<Dot, WriteError> {
        // Copied so that the message that contained them can be freed.
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value));
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let now_ms = wall_ms();
        let expires_ms = ttl.map(|ttl| now_ms.saturating_add(millis(ttl)));
        let result = inner.replica.put(key, value, expires_ms, now_ms);
        match (inner.full_at, &result) {
            (None, Err(full)) => warn!("refuses writes: {full}"),
            (Some(_), Ok(_)) => info!("accepts writes again"),
            _ => {}
        }
        inner.full_at = result.as_ref().err().map(|full| full.held);
        let dot = result?;
        self.after(&mut inner);
        Ok(dot)
    }

    /// Deletes a key. `None` if the key had no live value.
    pub fn delete(&self, key: &str) -> Result<Option<Dot>, WriteError> {
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let dot = inner.replica.delete(Bytes::copy_from_slice(key.as_bytes()), wall_ms());
        self.after(&mut inner);
        Ok(dot)
    }

    /// Replaces or removes the TTL of a key. `None` if the key had no live value.
    pub fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<Option<Dot>, WriteError> {
        let mut inner = self.inner.lock();
        self.writable(&inner)?;
        let now_ms = wall_ms();
        let expires_ms = ttl.map(|ttl| now_ms.saturating_add(millis(ttl)));
        let dot = inner.replica.touch(Bytes::copy_from_slice(key.as_bytes()), expires_ms, now_ms)?;
        self.after(&mut inner);
        Ok(dot)
    }

    /// Reads a key.
    pub fn read(&self, key: &str) -> Result<Read, ReadError> {
        let inner = self.inner.lock();
        self.readable(&inner)?;
        let now_ms = wall_ms();
        let record = inner.replica.store().get(key.as_bytes());
        Ok(Read { value: record.and_then(|record| live(record, now_ms)), dot: record.map(|record| record.dot) })
    }

    /// The last write of a key that the store has a record of, deletes included.
    pub fn dot(&self, key: &str) -> Option<Dot> {
        self.inner.lock().replica.store().get(key.as_bytes()).map(|record| record.dot)
    }

    /// Adds everything that this node holds to the session, because a listing also shows which keys are absent.
    pub fn saw_all(&self, session: &mut Session) {
        for (&origin, cover) in self.inner.lock().replica.vector() {
            session.saw(Dot { hlc: cover.last.min(cover.seen), origin });
        }
    }

    /// Live entries under `prefix` after the key `after`, in key order: at most `max_entries`, and at most one entry
    /// beyond `max_bytes`.
    ///
    /// The lock is released between steps, so entries may be from different moments of the call.
    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Page, ReadError> {
        let mut page = Page::default();
        let mut bytes = 0;
        let mut last: Option<Bytes> = after.map(|key| Bytes::copy_from_slice(key.as_bytes()));
        loop {
            let inner = self.inner.lock();
            self.readable(&inner)?;
            let now_ms = wall_ms();
            let store = inner.replica.store();
            // Whichever is later: the start of the prefix, or the last key read.
            let start = last.clone().filter(|last| last.as_ref() >= prefix.as_bytes());
            let mut records: Box<dyn Iterator<Item = _>> = match &start {
                Some(last) => Box::new(store.scan(Some(last))),
                None => Box::new(store.scan_from(prefix.as_bytes())),
            };
            for _ in 0..LIST_STEP {
                let Some((key, record)) = records.next().filter(|(key, _)| key.starts_with(prefix.as_bytes())) else {
                    return Ok(page);
                };
                if let Some(value) = live(record, now_ms) {
                    if page.entries.len() >= max_entries || bytes >= max_bytes {
                        page.more = true;
                        return Ok(page);
                    }
                    bytes += key.len() + value.value.len();
                    page.entries.push((key.clone(), value));
                }
                last = Some(key.clone());
            }
        }
    }

    pub(super) fn readable(&self, inner: &Inner) -> Result<(), ReadError> {
        if inner.replica.serves() { Ok(()) } else { Err(ReadError::NotReady(self.phase())) }
    }

    fn writable(&self, inner: &Inner) -> Result<(), WriteError> {
        if inner.draining {
            Err(WriteError::NotReady(Phase::Draining))
        } else if inner.replica.serves() {
            Ok(())
        } else {
            Err(WriteError::NotReady(self.phase()))
        }
    }
}
