//! The items of the crate that the tests use: no other file names the crate's modules.

pub use bytes::Bytes;
pub use kvasir_proto::peer::v1::{Entry, Message, Roster, Seat, SeatState, Seen, Want, message::Kind};
pub use kvasir_replica::clock::{Dot, stamp_at};
pub use kvasir_replica::protocol::{
    Bounds, Change, Coverage, EXPIRE_STEP, HEARD_BEATS, KEPT_DELETES, LinkId, MAX_ENDED, MAX_SEATS, REMEMBER_ENDED_MS,
    REMEMBER_EVICTED_MS, Replica, Settings, TWIN_BEATS, View,
};
pub use kvasir_replica::session::Session;

pub use crate::net::{ALONE, BEAT_MS, Net, START_MS};
