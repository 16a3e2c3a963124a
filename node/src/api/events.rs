//! Cluster events as a stream: membership events and evictions.

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

/// How many event streams may be open at a time.
const MAX_LISTENERS: usize = 256;

/// Permits for event streams.
pub(super) fn listeners() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_LISTENERS))
}

/// Streams a `JOINED` for each member that is there, then events as they happen, until `stop` is cancelled.
pub(super) fn events(
    overview: &Overview,
    listeners: Arc<Semaphore>,
    stop: CancellationToken,
) -> Result<BoxStream<'static, Result<ClusterEvent, Status>>, Status> {
    let permit = listeners.try_acquire_owned().map_err(|_| {
        Status::resource_exhausted(format!(
            "{MAX_LISTENERS} event streams are open on this node, which is the limit: close some, or ask another node"
        ))
    })?;
    // Subscribes before it lists the members: a member that joins in between is sent twice rather than never.
    let sources = (overview.events(), overview.evictions());
    let present: Vec<_> = overview.peers().into_iter().map(|peer| Ok(of_member(Kind::Joined, &peer.id))).collect();
    let changes = stream::unfold(Some((sources, permit)), async |state| {
        let ((mut events, mut evictions), permit) = state?;
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
        Some((Ok(event), Some(((events, evictions), permit))))
    });
    Ok(stream::iter(present).chain(changes).take_until(stop.cancelled_owned()).boxed())
}

fn of_membership(event: &Event) -> Option<ClusterEvent> {
    match event {
        Event::Joined(id) => Some(of_member(Kind::Joined, id)),
        Event::Left(id) => Some(of_member(Kind::Left, id)),
        Event::Failed(id) => Some(of_member(Kind::Failed, id)),
        // About this node itself, which was never gone.
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
