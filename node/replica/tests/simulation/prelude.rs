//! The items of the crate that the simulation uses: no other file names the crate's modules.

pub use bytes::Bytes;
pub use kvasir_proto::peer::v1::{Message, SeatState, Stranger};
pub use kvasir_replica::clock::{Dot, ms_of, stamp_at};
pub use kvasir_replica::protocol::{
    Bounds, Change, Coverage, KEPT_DELETES, LOG_MAX_BYTES, LinkId, MAX_ENDED, Need, REMEMBER_ENDED_MS,
    REMEMBER_EVICTED_MS, Replica, Seat, Settings, Vector, View, Violation,
};
pub use kvasir_replica::session::Session;
pub use kvasir_replica::store::{Record, Store};
