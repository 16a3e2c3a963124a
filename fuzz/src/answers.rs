//! How the client reads a node's answers.

use kvasir_client::fuzzing;
use kvasir_proto::v1;
use prost::Message;

use crate::input::Input;

/// A decoded message is equal after another round trip.
pub(crate) fn decoded<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let written = message.encode_to_vec();
    let again = M::decode(&written[..]).expect("what was encoded can be decoded");
    assert_eq!(message, again);
    Some(message)
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.below(10);
    let bytes = input.rest();
    match kind {
        0 => drop(decoded(bytes).map(|answer: v1::GetResponse| {
            let (given, ttl) = (answer.value.clone(), answer.ttl);
            if let Ok(value) = fuzzing::value(answer) {
                assert_eq!((value.value, value.ttl.is_some()), (given, ttl.is_some()));
                assert_eq!(value.version.to_string().len(), 33);
            }
        })),
        1 => drop(decoded(bytes).map(|answer: v1::ListResponse| {
            answer.entries.into_iter().map(fuzzing::entry).collect::<Result<Vec<_>, _>>()
        })),
        2 => drop(decoded(bytes).map(|answer: v1::WatchResponse| {
            answer.events.into_iter().map(fuzzing::event).collect::<Result<Vec<_>, _>>()
        })),
        3 => drop(
            decoded(bytes)
                .map(|answer: v1::MembersResponse| answer.members.into_iter().map(fuzzing::member).collect::<Vec<_>>()),
        ),
        4 => drop(decoded(bytes).map(fuzzing::who_am_i)),
        5 => drop(decoded(bytes).map(fuzzing::leader)),
        6 => drop(decoded(bytes).map(fuzzing::status)),
        7 => drop(decoded::<v1::PipeResponse>(bytes)),
        8 => drop(decoded(bytes).map(fuzzing::cluster_event)),
        _ => drop(decoded(bytes).map(|v1::Failure { code, message }| {
            // The client retries after `UNAVAILABLE` and `UNKNOWN`; any other code is an error with a message.
            if let Some(error) = fuzzing::failure(code, &message) {
                assert!(!error.to_string().is_empty());
            }
        })),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    let version = Some(v1::Version { hlc: 7, origin: 9 });
    let ttl = Some(prost_types::Duration { seconds: 3, nanos: 5 });
    let get = v1::GetResponse { value: "v".into(), version, ttl, ..v1::GetResponse::default() };
    let entry = v1::ListEntry { key: "k".into(), value: "v".into(), version, ttl };
    let list = v1::ListResponse { entries: vec![entry], next_page_token: "t".into(), session: "s".into() };
    let event = v1::WatchEvent { kind: 1, key: "k".into(), value: "v".into(), version, ttl };
    let watch = v1::WatchResponse { events: vec![event], live: true, lost: 1 };
    let member =
        v1::Member { name: "a".into(), origin: "0f".into(), role: 1, state: 1, linked: true, ..v1::Member::default() };
    let status =
        v1::StatusResponse { member: Some(member.clone()), phase: 3, lag: ttl, ..v1::StatusResponse::default() };
    vec![
        of(0, get.encode_to_vec()),
        of(1, list.encode_to_vec()),
        of(2, watch.encode_to_vec()),
        of(3, v1::MembersResponse { members: vec![member.clone()] }.encode_to_vec()),
        of(
            4,
            v1::WhoAmIResponse { member: Some(member.clone()), cluster: "c".into(), phase: 3, cluster_uid: "u".into() }
                .encode_to_vec(),
        ),
        of(5, v1::LeaderResponse { leader: Some(member), is_me: true }.encode_to_vec()),
        of(6, status.encode_to_vec()),
        of(7, v1::PipeResponse { id: 3, result: Some(v1::pipe_response::Result::Get(get)) }.encode_to_vec()),
        of(8, v1::ClusterEvent { kind: 3, name: "a".into(), role: 2, ..v1::ClusterEvent::default() }.encode_to_vec()),
        of(9, v1::Failure { code: 3, message: "key: empty".into() }.encode_to_vec()),
        of(9, v1::Failure { code: 8, message: String::new() }.encode_to_vec()),
    ]
}
