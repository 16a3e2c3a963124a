//! What happens to members, as a stream: membership's events and the
//! evictions that a majority decided on.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{ClusterEvent, ClusterEventKind as Kind, Role as WireRole};
use tokio::sync::{Semaphore, broadcast::error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::Role;
use crate::engine::Evicted;
use crate::membership::{Event, NodeId};
use crate::overview::Overview;

/// Streams of events that may be open at a time.
const MAX_LISTENERS: usize = 256;

/// Places for those who listen.
pub(super) fn listeners() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_LISTENERS))
}

/// Those who are there, then what happens, until `stop` is cancelled.
pub(super) fn events(
    overview: &Overview,
    listeners: Arc<Semaphore>,
    stop: CancellationToken,
) -> Result<BoxStream<'static, Result<ClusterEvent, Status>>, Status> {
    let place = listeners.try_acquire_owned().map_err(|_| {
        Status::resource_exhausted(format!("{MAX_LISTENERS} event streams are open on this node, which is the limit"))
    })?;
    // Subscribed before those who are there are counted: one that comes in
    // between is told twice rather than never.
    let sources = (overview.events(), overview.evictions());
    let present: Vec<_> = overview.peers().into_iter().map(|peer| Ok(of_member(Kind::Joined, &peer.id))).collect();
    let happens = stream::unfold(Some((sources, place)), async |state| {
        let ((mut events, mut evictions), place) = state?;
        let event = loop {
            let event = tokio::select! {
                event = events.recv() => event.map(|event| of_membership(&event)),
                evicted = evictions.recv() => evicted.map(|evicted| Some(of_eviction(&evicted))),
            };
            match event {
                Ok(None) => {}
                Ok(Some(event)) => break event,
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(_)) => {
                    return Some((Ok(event_of(Kind::Lagged, String::new(), 0, WireRole::Unspecified)), None));
                }
            }
        };
        Some((Ok(event), Some(((events, evictions), place))))
    });
    Ok(stream::iter(present).chain(happens).take_until(stop.cancelled_owned()).boxed())
}

fn of_membership(event: &Event) -> Option<ClusterEvent> {
    match event {
        Event::Joined(id) => Some(of_member(Kind::Joined, id)),
        Event::Left(id) => Some(of_member(Kind::Left, id)),
        Event::Failed(id) => Some(of_member(Kind::Failed, id)),
        // Of this node itself, which never went.
        Event::Renewed(_) => None,
    }
}

fn of_member(kind: Kind, id: &NodeId) -> ClusterEvent {
    let role = match id.role {
        Role::Member => WireRole::Member,
        Role::Sidecar => WireRole::Sidecar,
    };
    event_of(kind, id.name.clone(), id.origin, role)
}

fn of_eviction(evicted: &Evicted) -> ClusterEvent {
    let role = if evicted.voter { WireRole::Member } else { WireRole::Sidecar };
    event_of(Kind::Evicted, evicted.name.clone(), evicted.origin, role)
}

fn event_of(kind: Kind, name: String, origin: u64, role: WireRole) -> ClusterEvent {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ClusterEvent {
        kind: kind.into(),
        name,
        origin: format!("{origin:016x}"),
        role: role.into(),
        at: Some(prost_types::Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(now.subsec_nanos()).expect("less than a second"),
        }),
    }
}
