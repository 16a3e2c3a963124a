//! Between membership, discovery and those who need to know who is there: the
//! transport, which links to every member, and the replica, which may found a
//! cluster only when nobody else is in sight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::discovery;
use crate::engine::Engine;
use crate::membership::{Life, MemberInfo};
use crate::replica::{PeerId, View};
use crate::transport::Peer;

/// How often the links are compared with what was found; they have no channel
/// of their own to tell of a change.
const LOOK: Duration = Duration::from_millis(50);

type Members = watch::Receiver<Arc<Vec<MemberInfo>>>;

/// The members as peers to be linked to.
pub(super) fn to_link(mut members: Members, stop: CancellationToken) -> watch::Receiver<Vec<Peer>> {
    let (out, peers) = watch::channel(Vec::new());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let now = members.borrow_and_update().iter().map(peer).collect::<Vec<_>>();
            out.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            if members.changed().await.is_err() {
                return;
            }
        }
    }));
    peers
}

/// Keeps membership's idea of this node as the replica's: when the one begins
/// anew, so does the other.
pub(super) async fn live_on(mut identity: watch::Receiver<PeerId>, life: watch::Sender<Life>) {
    while identity.changed().await.is_ok() {
        let (origin, started_ms) = {
            let id = identity.borrow_and_update();
            (id.origin, id.started_ms)
        };
        life.send_replace((origin, started_ms));
    }
}

fn peer(member: &MemberInfo) -> Peer {
    let id = &member.id;
    Peer { origin: id.origin, address: id.peer_address, name: id.name.clone() }
}

/// Keeps the engine's view of who else there is.
pub(super) async fn keep_view(
    engine: Arc<Engine>,
    my_address: SocketAddr,
    members: Members,
    discovery: watch::Receiver<Arc<discovery::View>>,
) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let (linked, links) = engine.linked();
        let view = view(my_address, &members.borrow(), &discovery.borrow(), &linked);
        engine.set_view(view, links);
    }
}

/// An address that was found counts as unlinked until a member that listens
/// there is linked: until then nobody knows what is behind it.
fn view(my_address: SocketAddr, members: &[MemberInfo], discovery: &discovery::View, linked: &[u64]) -> View {
    let is_linked = |member: &&MemberInfo| linked.contains(&member.id.origin);
    let reached = |address: &SocketAddr| members.iter().filter(is_linked).any(|m| m.id.peer_address == *address);
    let found = discovery.addresses.keys().filter(|address| **address != my_address);
    let told_of = members.iter().map(|m| &m.id.peer_address).filter(|at| !discovery.addresses.contains_key(at));
    View { answered: discovery.answered(), unlinked: found.chain(told_of).filter(|address| !reached(address)).count() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;
    use crate::discovery::ProviderStatus;
    use crate::membership::{MemberState, NodeId};

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn member(origin: u64, port: u16) -> MemberInfo {
        MemberInfo { id: NodeId::new("n", origin, Role::Member, at(port), 1), state: MemberState::Alive }
    }

    fn found(ports: &[u16], answered: bool) -> discovery::View {
        let provider = ProviderStatus { provider: "static", answered, ..ProviderStatus::default() };
        discovery::View { addresses: ports.iter().map(|p| (at(*p), "static")).collect(), providers: vec![provider] }
    }

    #[test]
    fn what_was_found_is_unlinked_until_the_member_there_is_linked() {
        let seen =
            |members: &[MemberInfo], linked: &[u64]| view(at(1), members, &found(&[1, 2, 3], true), linked).unlinked;
        assert_eq!(seen(&[], &[]), 2, "my own address is nobody else's");
        assert_eq!(seen(&[member(2, 2)], &[]), 2);
        assert_eq!(seen(&[member(2, 2)], &[2]), 1);
        assert_eq!(seen(&[member(2, 2), member(3, 3)], &[2, 3]), 0);
        assert_eq!(seen(&[member(2, 2), member(3, 3), member(4, 4)], &[2, 3]), 1, "told of by others");
    }

    #[test]
    fn every_provider_must_have_answered() {
        let answered = |view: &discovery::View| super::view(at(1), &[], view, &[]).answered;
        assert!(answered(&found(&[], true)) && !answered(&found(&[], false)));
        assert!(answered(&discovery::View::default()), "no discovery: alone by choice");
    }
}
