//! What one node writes, another one reads: frames, membership datagrams, and the client's codecs.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kvasir_client::{Codec, Json, Proto, Text};
use kvasir_node::config::{Role, SwimConfig};
use kvasir_node::membership::swim::{Output, Swim};
use kvasir_node::membership::wire::{VERSION, envelope};
use kvasir_node::membership::{MAX_DATAGRAM, MemberInfo, NodeId};
use kvasir_node::transport::frame::{self, Mode};
use kvasir_proto::peer::v1::{
    Ack, Delta, Digest, Entry, Hello, Message, Namesake, Push, Report, Roster, Seat, Seen, Standing, Sync,
    message::Kind,
};
use kvasir_proto::v1::Version;
use proptest::collection::vec;
use proptest::prelude::*;

// ---- peer frames

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn entry() -> impl Strategy<Value = Entry> {
    (bytes(), any::<(u64, u64, bool, u64, u64, u64, u64, u64)>(), bytes()).prop_map(
        |(key, (hlc, origin, deleted, expires_ms, first_hlc, first_origin, replaced_hlc, replaced_origin), value)| {
            Entry {
                key,
                hlc,
                origin,
                deleted,
                value,
                expires_ms,
                first_hlc,
                first_origin,
                replaced_hlc,
                replaced_origin,
            }
        },
    )
}

fn seen() -> impl Strategy<Value = Seen> {
    any::<(u64, u64, u64, u64)>().prop_map(|(origin, hlc, last, beyond)| Seen { origin, hlc, last, beyond })
}

fn standing() -> impl Strategy<Value = Option<Standing>> {
    prop::option::of(any::<(u64, u64, bool, u64, u64, u64)>().prop_map(
        |(founded_hlc, founded_by, promised, collected, forgotten, vouched)| Standing {
            founded_hlc,
            founded_by,
            promised,
            collected,
            forgotten,
            vouched,
        },
    ))
}

fn seat() -> impl Strategy<Value = Seat> {
    (any::<(u64, bool, u64, i32, u64, bool, u64, u64, u64)>(), ".{0,20}").prop_map(
        |((origin, voter, started_ms, state, since_hlc, returning, sponsor, began_hlc, agreed_hlc), name)| Seat {
            origin,
            name,
            voter,
            started_ms,
            state,
            since_hlc,
            returning,
            sponsor,
            began_hlc,
            agreed_hlc,
        },
    )
}

fn namesake() -> impl Strategy<Value = Option<Namesake>> {
    prop::option::of(any::<(u64, u64, bool)>().prop_map(|(origin, started_ms, for_good)| Namesake {
        origin,
        started_ms,
        for_good,
    }))
}

fn message() -> impl Strategy<Value = Message> {
    let push = (any::<(u64, u64)>(), vec(entry(), 0..4))
        .prop_map(|((prev, last), entries)| Kind::Push(Push { prev, last, entries, now_ms: last }));
    let digest = any::<(u64, u64, u64, u64)>().prop_map(|(seen_hash, fingerprint_hi, fingerprint_lo, forgotten)| {
        Kind::Digest(Digest { seen_hash, fingerprint_hi, fingerprint_lo, forgotten })
    });
    let sync = (any::<(u32, i32, bool, bool, u64, u64)>(), vec(seen(), 0..4), standing(), bytes()).prop_map(
        |((id, want, ready, echo, sponsor, began_hlc), seen, standing, buckets)| {
            Kind::Sync(Sync { id, want, seen, ready, standing, buckets, echo, sponsor, began_hlc })
        },
    );
    let roster = || vec(seat(), 0..4).prop_map(|seats| Roster { seats });
    let parts = (vec(entry(), 0..4), vec(seen(), 0..4), standing(), prop::option::of(roster()), namesake());
    let delta = (any::<(u32, u32, bool, bool, i32)>(), parts).prop_map(
        |((id, seq, last, ready, stranger), (entries, seen, standing, roster, namesake))| {
            Kind::Delta(Delta { id, seq, entries, last, seen, ready, standing, stranger, roster, namesake })
        },
    );
    let ack = any::<u64>().prop_map(|hlc| Kind::Ack(Ack { hlc }));
    let report = (any::<(u64, u64, u32)>(), standing(), vec(any::<u64>(), 0..4), namesake()).prop_map(
        |((roster_hash, stable, voters), standing, silent, namesake)| {
            Kind::Report(Report { roster_hash, stable, standing, silent, voters, namesake })
        },
    );
    let roster = roster().prop_map(Kind::Roster);
    prop_oneof![push, digest, sync, delta, ack, report, roster].prop_map(|kind| Message { kind: Some(kind) })
}

proptest! {
    #[test]
    fn frames_are_read_in_order_and_a_cut_one_is_refused(
        messages in vec(message(), 1..5),
        name in ".{0,60}",
        numbers: (u64, u64, u64, bool, bool),
        cut: prop::sample::Index,
    ) {
        let (origin, now_ms, started_ms, sidecar, returning) = numbers;
        let cluster_uid = name.clone();
        let hello = Hello { cluster: name.clone(), name, origin, sidecar, now_ms, started_ms, returning, cluster_uid };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without sockets");
        runtime.block_on(async {
            let (mut wire, mut frames) = (Vec::new(), BytesMut::new());
            frame::write_preamble(&mut wire, Mode::Plain, frame::VERSION).await.unwrap();
            frame::append(&mut frames, &hello);
            for message in &messages {
                frame::append(&mut frames, message);
            }
            frame::write(&mut wire, &frames).await.unwrap();
            let mut stream = &wire[..];
            frame::read_preamble(&mut stream, Mode::Plain, frame::VERSION).await.unwrap();
            assert_eq!(frame::read::<Hello>(&mut stream, 1 << 20).await.unwrap(), hello);
            for message in &messages {
                assert_eq!(&frame::read::<Message>(&mut stream, 1 << 20).await.unwrap(), message);
            }
            assert!(stream.is_empty());
            // The last frame, cut.
            let mut last = BytesMut::new();
            frame::append(&mut last, messages.last().expect("at least one"));
            let mut cut = &last[..cut.index(last.len())];
            assert!(frame::read::<Message>(&mut cut, 1 << 20).await.is_err());
        });
    }
}

// ---- membership datagrams

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = (1u8..=223, any::<(u8, u8, u8)>(), 1u16..)
        .prop_map(|(a, (b, c, d), port)| SocketAddr::from(([a, b, c, d], port)));
    let v6 = (any::<u64>(), 1u16..)
        .prop_map(|(low, port)| SocketAddr::from((Ipv6Addr::from(0xfd00 << 112 | u128::from(low)), port)));
    prop_oneof![v4, v6]
}

fn node() -> impl Strategy<Value = NodeId> {
    // In bytes, like the limits.
    let text = |max: usize| vec(prop::char::range('!', '~'), 1..=max).prop_map(String::from_iter);
    (text(63), text(32), 1u64.., any::<(bool, u64)>(), address()).prop_map(
        |(name, version, origin, (sidecar, started_ms), address)| {
            let role = if sidecar { Role::Sidecar } else { Role::Member };
            NodeId { version, ..NodeId::new(&name, origin, role, address, started_ms) }
        },
    )
}

/// All fields of an identity; `==` compares only the process.
fn said(id: &NodeId) -> (String, u64, Role, SocketAddr, u64, String, u32, bool) {
    let NodeId { name, origin, role, peer_address, started_ms, version, generation, leaving } = id.clone();
    (name, origin, role, peer_address, started_ms, version, generation, leaving)
}

proptest! {
    #[test]
    fn two_nodes_come_to_know_each_other_as_they_are(a in node(), b in node()) {
        prop_assume!(a.peer_address != b.peer_address && a.origin != b.origin && a.name != b.name);
        let mut nodes = [&a, &b].map(|id| Swim::new(id.clone(), envelope("default/demo", "u", VERSION), SwimConfig::LAN, Duration::ZERO, id.origin));
        nodes[0].set_addresses(Duration::ZERO, [b.peer_address]);
        nodes[0].tick(Duration::ZERO, u64::MAX);
        let mut passed = 0;
        loop {
            let before = passed;
            for (from, to) in [(0, 1), (1, 0)] {
                while let Some(output) = nodes[from].output() {
                    if let Output::Send(address, datagram) = output {
                        prop_assert_eq!(address, [&a, &b][to].peer_address);
                        prop_assert!(datagram.len() <= MAX_DATAGRAM);
                        nodes[to].datagram(Duration::ZERO, u64::MAX, &datagram).expect("it is of this cluster");
                        passed += 1;
                    }
                }
            }
            if passed == before || passed > 100 {
                break;
            }
        }
        let known = |members: Vec<MemberInfo>| members.iter().map(|member| said(&member.id)).collect::<Vec<_>>();
        prop_assert_eq!(known(nodes[0].members()), [said(&b)]);
        prop_assert_eq!(known(nodes[1].members()), [said(&a)]);
    }
}

// ---- the client's codecs

proptest! {
    #[test]
    fn a_value_comes_back_from_its_codec(
        text in ".{0,40}",
        hlc: u64,
        origin: u64,
        json in prop::collection::btree_map(".{0,8}", prop::option::of(any::<i64>()), 0..6),
        any_bytes in bytes(),
    ) {
        prop_assert_eq!(Text.decode(Text.encode(&text).unwrap()).unwrap(), text);
        let message = Version { hlc, origin };
        let encoded = Codec::<Version>::encode(&Proto, &message).unwrap();
        prop_assert_eq!(Codec::<Version>::decode(&Proto, encoded).unwrap(), message);
        let encoded = Json.encode(&json).unwrap();
        prop_assert_eq!(Codec::<std::collections::BTreeMap<String, Option<i64>>>::decode(&Json, encoded).unwrap(), json);
        // Invalid bytes are refused, or are a value.
        let read = Text.decode(any_bytes.clone());
        prop_assert_eq!(read.is_ok(), std::str::from_utf8(&any_bytes).is_ok());
        let _: Result<Version, _> = Proto.decode(any_bytes.clone());
        let _: Result<u64, _> = Json.decode(any_bytes);
    }
}
