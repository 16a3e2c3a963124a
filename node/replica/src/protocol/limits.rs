//! The limits of the protocol, each with its number.

/// A message carries at most this many bytes of keys and values, plus one entry.
pub const MESSAGE_MAX_BYTES: usize = 256 << 10;
/// A message carries at most this many entries: the receiver's clients wait while it takes them in, which is about a
/// millisecond.
pub const MESSAGE_MAX_ENTRIES: usize = 1024;
/// One step of a delta looks at no more than this many records, so that the caller's lock is not held for long.
pub const SCAN_STEP: usize = 8192;
/// One tick frees at most this many expired values.
pub const EXPIRE_STEP: usize = 8192;
/// A third node's write is relayed only to a peer that has not heard from that node for this long: until then that
/// node's push may be on its way.
pub const RELAY_AFTER_MS: u64 = 2_000;
/// A Sync without an answer, or with an answer that stalls, is repeated after this.
pub const SYNC_TIMEOUT_MS: u64 = 5_000;
/// A repair begins after this many digests with equal vectors and different maps, without one in between that shows
/// equal maps.
pub const STRIKES: u32 = 3;
/// Links that get a digest at each sync interval, in turn.
pub const DIGEST_FANOUT: usize = 3;

/// A node that is at `maxMemory` refuses clients' writes, but takes peers' writes up to this part of the limit above it: writes
/// that were on their way are not refused.
pub const HEADROOM: u64 = 8;
/// How often a node without room asks again for what it could not take.
pub const RETRY_MS: u64 = 1_000;
/// The stability watermark is a multiple of this: nodes that get reports at different moments still come to the same timestamp.
pub const COLLECT_STEP_MS: u64 = 4_096;
/// An ended seat is remembered for at least this long, so that a session that saw writes of the seat learns that they are lost.
pub const REMEMBER_ENDED_MS: u64 = 10 * 60 * 1000;
/// For the log, this many keys of writes that came too late to be reissued are kept.
pub const LATE_KEYS: usize = 20;
/// For this long after an eviction, tombstones are kept that may have to beat the backlog of the evicted node.
pub const REMEMBER_EVICTED_MS: u64 = 60 * 60 * 1000;
/// A node with more tombstones than this, or whose tombstones take more than a [`HEADROOM`]th of `maxMemory`, keeps no more for
/// nodes that may rejoin: it drops the oldest, and older writes of those nodes are lost.
pub const KEPT_DELETES: u64 = 1 << 18;

/// At most this many ended seats are remembered, besides seats whose writes not all nodes hold yet; the seats that ended first
/// are dropped first.
pub const MAX_ENDED: usize = 1024;
/// A longer roster is refused; a real one has a few dozen seats.
pub const MAX_SEATS: usize = 4096;
/// At most this many writes are kept.
pub const LOG_MAX_ENTRIES: usize = 65_536;
/// At most this many bytes of keys and values are kept, and always the last write.
pub const LOG_MAX_BYTES: usize = 32 << 20;

/// A peer counts as heard if something came from it within this many beats.
pub const HEARD_BEATS: u32 = 3;
/// A process is refused for good once the holder of its name was heard in this many beats since the process came. Messages that
/// were on their way before cannot take that long.
pub const TWIN_BEATS: u32 = 5;
