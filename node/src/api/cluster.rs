//! The gRPC service `Cluster`: the overview in gRPC's terms. Answers in every
//! phase.

use kvasir_proto::v1::{
    DiscoveryStatus, LeaderRequest, LeaderResponse, Member, MemberState as WireState, MembersRequest, MembersResponse,
    Phase as WirePhase, Role as WireRole, StatusRequest, StatusResponse, WhoAmIRequest, WhoAmIResponse, cluster_server,
};
use tonic::{Request, Response, Status};

use super::overview::{Overview, Peer};
use crate::config::Role;
use crate::engine::Phase;
use crate::membership::MemberState;

/// `kvasir.v1.Cluster` over the overview.
pub(super) struct Cluster(pub(super) Overview);

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(MembersResponse { members: self.0.everyone().into_iter().map(member).collect() }))
    }

    async fn who_am_i(&self, _: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        Ok(Response::new(WhoAmIResponse {
            member: Some(member(self.0.me())),
            cluster: self.0.cluster().to_owned(),
            phase: phase(self.0.phase()).into(),
        }))
    }

    async fn leader(&self, _: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (leader, is_me) = self
            .0
            .leader()
            .ok_or_else(|| Status::unavailable("no member is known yet: this node is a sidecar; try again"))?;
        Ok(Response::new(LeaderResponse { leader: Some(member(leader)), is_me }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let stats = self.0.stats();
        let discovery = self
            .0
            .discovery()
            .providers
            .iter()
            .map(|p| DiscoveryStatus {
                provider: p.provider.to_owned(),
                found: p.found(),
                error: p.error.clone().unwrap_or_default(),
                failures: p.failures,
                members: self.0.found_by(p),
            })
            .collect();
        Ok(Response::new(StatusResponse {
            member: Some(member(self.0.me())),
            phase: phase(self.0.phase()).into(),
            keys: stats.keys,
            tombstones: stats.tombstones,
            memory_bytes: stats.memory_bytes,
            max_memory_bytes: stats.max_memory.unwrap_or(0),
            fingerprint: format!("{:032x}", stats.fingerprint),
            lag: stats.lag.map(|lag| prost_types::Duration {
                seconds: i64::try_from(lag.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(lag.subsec_nanos()).expect("less than a second"),
            }),
            discovery,
        }))
    }
}

fn member(peer: Peer) -> Member {
    let Peer { id, state, linked, found_by } = peer;
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
        started_at: Some(prost_types::Timestamp {
            seconds: i64::try_from(id.started_ms / 1000).expect("an u64 of milliseconds fits an i64 of seconds"),
            nanos: i32::try_from(id.started_ms % 1000 * 1_000_000).expect("less than a second"),
        }),
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
