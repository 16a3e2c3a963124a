//! The cluster calls, with fixed answers.

use super::{Node, event};
use futures::stream::{BoxStream, StreamExt as _};
use kvasir_proto::v1;
use kvasir_proto::v1::cluster_server::Cluster;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Cluster for Node {
    type EventsStream = BoxStream<'static, Result<v1::ClusterEvent, Status>>;

    async fn events(&self, _: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.current()?;
        let (listener, events) = tokio::sync::mpsc::unbounded_channel();
        let _ = listener.send(event(v1::ClusterEventKind::Joined, self.name));
        self.levers.listeners.lock().unwrap().push(listener);
        let events = tokio_stream::wrappers::UnboundedReceiverStream::new(events);
        Ok(Response::new(events.map(Ok).boxed()))
    }

    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersResponse>, Status> {
        let sidecar = v1::Member {
            name: "app-sidecar".to_owned(),
            role: v1::Role::Sidecar.into(),
            state: v1::MemberState::Suspect.into(),
            linked: false,
            found_by: String::new(),
            ..self.member()
        };
        Ok(Response::new(v1::MembersResponse { members: vec![self.member(), sidecar] }))
    }

    async fn who_am_i(&self, _: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        self.levers.calls.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::WhoAmIResponse {
            member: Some(self.member()),
            cluster: "apps/demo".to_owned(),
            phase: v1::Phase::Ready.into(),
            cluster_uid: "2c1ea3d5".to_owned(),
        }))
    }

    async fn leader(&self, _: Request<v1::LeaderRequest>) -> Result<Response<v1::LeaderResponse>, Status> {
        Ok(Response::new(v1::LeaderResponse { leader: Some(self.member()), is_me: true }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Ok(Response::new(v1::StatusResponse {
            member: Some(self.member()),
            phase: v1::Phase::Syncing.into(),
            keys: self.map.lock().unwrap().len() as u64,
            tombstones: 3,
            memory_bytes: 1000,
            max_memory_bytes: 0,
            fingerprint: "00ff".to_owned(),
            lag: Some(Duration::from_millis(12).try_into().unwrap()),
            discovery: vec![v1::DiscoveryStatus {
                provider: "dns".to_owned(),
                found: 3,
                error: "no such name".to_owned(),
                failures: 2,
                members: vec!["demo-0".to_owned()],
            }],
            seats: [("joining", 0), ("member", 2), ("evicted", 1), ("ended", 0)]
                .map(|(state, count)| (state.to_owned(), count))
                .into(),
            collected_age: Some(Duration::from_secs(7).try_into().unwrap()),
            overfull: true,
            returns: 4,
            founded_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 7_000_000 }),
            skewed: vec![v1::SkewedPeer {
                name: "demo-2".to_owned(),
                reason: "its clock is 90s ahead of ours".to_owned(),
            }],
            unjoinable: vec![v1::UnjoinablePeer {
                address: "10.0.0.7:7071".to_owned(),
                name: String::new(),
                reason: "key".to_owned(),
                why: "it has another key".to_owned(),
            }],
            waits_for: vec!["does not reach 10.0.0.8:7071".to_owned()],
        }))
    }
}
