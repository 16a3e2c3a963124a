//! The conversion of a node's answers, for the fuzz targets.
#![allow(missing_docs)]

use crate::{
    ClusterEvent, Entry, Error, Event, Leader, Member, Status, Value, WhoAmI, cluster, error, events, kv, watch,
};
use kvasir_proto::v1;

pub fn value(answer: v1::GetResponse) -> Result<Value, Error> {
    kv::value(answer)
}

pub fn entry(entry: v1::ListEntry) -> Result<Entry, Error> {
    kv::entry(entry)
}

pub fn event(event: v1::WatchEvent) -> Result<Event, Error> {
    watch::event(event)
}

pub fn cluster_event(event: v1::ClusterEvent) -> Option<ClusterEvent> {
    events::event(event)
}

pub fn member(member: v1::Member) -> Member {
    cluster::member(member)
}

pub fn who_am_i(answer: v1::WhoAmIResponse) -> Result<WhoAmI, Error> {
    cluster::who_am_i(answer)
}

pub fn leader(answer: v1::LeaderResponse) -> Result<Leader, Error> {
    cluster::leader(answer)
}

pub fn status(answer: v1::StatusResponse) -> Result<Status, Error> {
    cluster::status(answer)
}

/// The error of a status that is final; `None`: the call is tried again.
pub fn failure(code: i32, message: &str) -> Option<Error> {
    match error::Failure::from(tonic::Status::new(code.into(), message)) {
        error::Failure::Final(error) => Some(error),
        error::Failure::Passing(_) | error::Failure::NoAnswer(_) => None,
    }
}
