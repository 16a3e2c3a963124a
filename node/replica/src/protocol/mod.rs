//! The replication protocol as a plain state machine: messages and the time go in, messages come out. No sockets, no wall
//! clock, no randomness; the simulator and the server drive the same code.
//!
//! `docs/replication.md` explains the algorithm. In short: a write has a [`Dot`](crate::clock::Dot); the [`Vector`] says up to
//! which timestamp everything of an origin was taken in; own writes are pushed from a bounded log, and what a peer lacks
//! otherwise goes in a delta that answers its Sync. Tombstones are dropped once all seats of an agreed roster have attested that
//! they hold them, and kept for a while if they may have to beat what an evicted node brings; a node that was not part of that
//! agreement resets. Links need not be reliable: a lost, doubled or late message costs another Sync, never a write.
//!
//! First come plain data and the parts that own their state, then the replica, then what happens to it. A file uses only files
//! before it in the order that `docs/architecture.md` has ("Inside the replica").

mod agreement;
mod backlog;
mod changes;
mod joining;
mod limits;
mod link;
mod log;
mod map;
mod outbox;
mod roster;
mod settings;
mod stamps;
mod types;
mod vector;

mod replica;

mod admission;
mod adopt;
mod attest;
mod clockwork;
mod collect;
mod coverage;
mod delta;
mod digest;
mod evict;
mod join;
mod leave;
mod messages;
mod names;
mod namesake;
mod push;
mod rejoin;
mod report;
mod seats;
mod sync;
mod writes;

pub use self::changes::Change;
pub use self::limits::*;
pub use self::link::LinkId;
pub use self::replica::Replica;
pub use self::roster::Seat;
pub use self::settings::{Bounds, Settings, View};
pub use self::stamps::STAMP_END;
pub use self::types::{Counters, Coverage, Full, Holders, Namesake, Need, PeerId, Violation};
pub use self::vector::{Cover, Vector};
