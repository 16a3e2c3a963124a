//! The gRPC service `Cluster`: the overview as gRPC messages. Answers in every phase.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use kvasir_proto::v1::{
    ClusterEvent, DiscoveryStatus, EventsRequest, LeaderRequest, LeaderResponse, Member, MemberState as WireState,
    MembersRequest, MembersResponse, Phase as WirePhase, Role as WireRole, SkewedPeer, StatusRequest, StatusResponse,
    UnjoinablePeer, WhoAmIRequest, WhoAmIResponse, cluster_server,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{events, identify};
use crate::config::Role;
use crate::engine::{Phase, SEAT_STATES};
use crate::membership::MemberState;
use crate::overview::{KnownNode, Overview};
use crate::refusals::Refusal;

/// `kvasir.v1.Cluster` over the overview.
pub(super) struct Cluster {
    pub(super) overview: Overview,
    /// Ends the streams that do not end by themselves.
    pub(super) stop: CancellationToken,
    /// Permits for event streams.
    pub(super) listeners: Arc<Semaphore>,
}

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(MembersResponse { members: self.overview.everyone().into_iter().map(member).collect() }))
    }

    async fn who_am_i(&self, _: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        Ok(Response::new(WhoAmIResponse {
            member: Some(member(self.overview.me())),
            cluster: self.overview.cluster().to_owned(),
            cluster_uid: self.overview.cluster_uid().to_owned(),
            phase: phase(self.overview.phase()).into(),
        }))
    }

    async fn leader(&self, _: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (leader, is_me) = self
            .overview
            .leader()
            .ok_or_else(|| Status::unavailable("this node is a sidecar and knows no member yet; try again"))?;
        Ok(Response::new(LeaderResponse { leader: Some(member(leader)), is_me }))
    }

    type EventsStream = BoxStream<'static, Result<ClusterEvent, Status>>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        may_admin(&request)?;
        events::events(&self.overview, self.listeners.clone(), self.stop.clone()).map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        may_admin(&request)?;
        let stats = self.overview.stats();
        let discovery = self
            .overview
            .discovery()
            .providers
            .iter()
            .map(|p| DiscoveryStatus {
                provider: p.provider.to_owned(),
                found: p.found(),
                error: p.error.clone().unwrap_or_default(),
                failures: p.failures,
                members: self.overview.found_by(p),
            })
            .collect();
        Ok(Response::new(StatusResponse {
            member: Some(member(self.overview.me())),
            phase: phase(self.overview.phase()).into(),
            keys: stats.keys,
            tombstones: stats.tombstones,
            memory_bytes: stats.memory_bytes,
            max_memory_bytes: stats.max_memory.unwrap_or(0),
            fingerprint: format!("{:032x}", stats.fingerprint),
            lag: stats.lag.map(duration),
            discovery,
            seats: SEAT_STATES
                .iter()
                .zip(stats.seats)
                .map(|((_, name), count)| ((*name).to_owned(), u32::try_from(count).unwrap_or(u32::MAX)))
                .collect(),
            collected_age: stats.collected_age.map(duration),
            overfull: stats.overfull,
            returns: stats.counters.returns,
            skewed: self.overview.skewed().into_iter().map(|(name, reason)| SkewedPeer { name, reason }).collect(),
            founded_at: stats.epoch.map(|epoch| timestamp(epoch.founded_ms)),
            unjoinable: self.overview.unjoinable().into_iter().map(unjoinable).collect(),
            waits_for: self.overview.waits_for(),
        }))
    }
}

/// Every identified client may list the members; events and status need the verb `admin`.
fn may_admin<T>(request: &Request<T>) -> Result<(), Status> {
    identify::caller(request.extensions())?.may_admin().map_err(identify::denied)
}

fn unjoinable(Refusal { address, name, reason, why }: Refusal) -> UnjoinablePeer {
    let reason = reason.as_str().to_owned();
    UnjoinablePeer { address: address.to_string(), name: name.unwrap_or_default(), reason, why }
}

fn duration(given: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(given.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(given.subsec_nanos()).expect("less than a second"),
    }
}

fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).expect("an u64 of milliseconds fits an i64 of seconds"),
        nanos: i32::try_from(ms % 1000 * 1_000_000).expect("less than a second"),
    }
}

fn member(node: KnownNode) -> Member {
    let KnownNode { id, state, linked, found_by } = node;
    let state = match state {
        MemberState::Alive => WireState::Alive,
        MemberState::Suspect => WireState::Suspect,
    };
    Member {
        name: id.name,
        origin: format!("{:016x}", id.origin),
        role: role(id.role).into(),
        peer_address: id.peer_address.to_string(),
        state: state.into(),
        started_at: Some(timestamp(id.started_ms)),
        version: id.version,
        linked,
        found_by: found_by.unwrap_or_default().to_owned(),
    }
}

fn role(role: Role) -> WireRole {
    match role {
        Role::Member => WireRole::Member,
        Role::Sidecar => WireRole::Sidecar,
    }
}

fn phase(phase: Phase) -> WirePhase {
    match phase {
        Phase::Joining => WirePhase::Joining,
        Phase::Syncing => WirePhase::Syncing,
        Phase::Ready => WirePhase::Ready,
        Phase::Draining => WirePhase::Draining,
    }
}
