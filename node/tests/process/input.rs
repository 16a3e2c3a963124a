//! What a client may not send, how it is refused, and listings.

use std::time::Duration;

use bytes::Bytes;
use kvasir_proto::v1;
use tonic::{Code, Status};

use crate::harness::Node;

const MIB: usize = 1 << 20;

fn duration(seconds: i64, nanos: i32) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos }
}

fn assert_refused(result: Result<impl std::fmt::Debug, Status>, code: Code, parts: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is not in {:?}", status.message());
    }
}

#[tokio::test]
async fn bad_input_is_refused_with_the_field_and_the_limit() {
    let node = Node::alone().await;
    let mut kv = node.kv();
    let long = "k".repeat(1025);
    let invalid = Code::InvalidArgument;
    let put = async |key: &str, value: usize, ttl| {
        node.kv()
            .0
            .put(v1::PutRequest { key: key.to_owned(), value: vec![0; value].into(), ttl, ..v1::PutRequest::default() })
            .await
    };
    let key_limit: [&str; 2] = ["key: 1025 bytes", "1024 (maxKeyBytes)"];
    assert_refused(put("", 1, None).await, invalid, &["key: empty", "1024 bytes (maxKeyBytes)"]);
    assert_refused(put(&long, 1, None).await, invalid, &key_limit);
    assert_refused(kv.get(&long).await, invalid, &key_limit);
    assert_refused(kv.get("").await, invalid, &["key: empty"]);
    assert_refused(kv.exists(&long).await, invalid, &key_limit);
    assert_refused(kv.delete(&long).await, invalid, &key_limit);
    for over in [MIB + 1, 2 * MIB, 4 * MIB] {
        assert_refused(
            put("k", over, None).await,
            invalid,
            &[&format!("value: {over} bytes"), "at most 1048576 (maxValueBytes)"],
        );
    }
    // A message so far over the limit that the node does not even read it: the node still answers with the reason and
    // keeps working.
    let reasons = ["key and value: more than", "1024 (maxKeyBytes)", "1048576 (maxValueBytes)"];
    assert_refused(put("k", 32 * MIB, None).await, invalid, &reasons);
    let huge = "k".repeat(32 * MIB);
    for refused in [kv.get(&huge).await.map(drop), kv.exists(&huge).await.map(drop), kv.delete(&huge).await.map(drop)] {
        assert_refused(refused, invalid, &["key: more than", "at most 1024 (maxKeyBytes)"]);
    }

    let ttl = async |seconds, nanos| put("k", 1, Some(duration(seconds, nanos))).await;
    assert_refused(ttl(0, 0).await, invalid, &["ttl: must be above zero, was 0s"]);
    assert_refused(ttl(-3, 0).await, invalid, &["ttl: must be above zero, was -3s"]);
    assert_refused(ttl(0, -1).await, invalid, &["ttl: must be above zero"]);
    assert_refused(ttl(315_360_001, 0).await, invalid, &["ttl: 315360001s", "at most 87600h (maxTtl)"]);
    assert_refused(ttl(i64::MAX, 0).await, invalid, &["ttl: 9223372036854775807s", "at most 87600h (maxTtl)"]);
    assert_refused(ttl(i64::MIN, 0).await, invalid, &["ttl: must be above zero"]);
    for (seconds, nanos) in [(1, -1), (1, 1_000_000_000), (0, i32::MIN)] {
        assert_refused(ttl(seconds, nanos).await, invalid, &["ttl: not a valid duration"]);
    }

    let list = async |prefix: &str, page_token: &[u8]| {
        let page_token = page_token.to_vec().into();
        node.kv().list(v1::ListRequest { prefix: prefix.to_owned(), page_token, ..Default::default() }).await
    };
    assert_refused(list(&long, b"").await, invalid, &["prefix: 1025 bytes", "(maxKeyBytes)"]);
    assert_refused(list("", b"nonsense").await, invalid, &["page_token: malformed"]);

    // The node stored none of these; it accepts what is just within the limits.
    assert!(kv.all().await.unwrap().is_empty());
    put(&long[..1024], MIB, Some(duration(315_360_000, 0))).await.unwrap();
    put("j", 0, Some(duration(0, 1_000_000))).await.unwrap();
    put("l", 0, None).await.unwrap();
    assert_eq!(kv.get("l").await.unwrap().as_deref(), Some(""));
}

#[tokio::test]
async fn limits_are_settings() {
    let node = Node::new("small")
        .with("max-key-bytes", "8")
        .with("max-value-bytes", "16")
        .with("max-ttl", "10s")
        .started()
        .await;
    let mut kv = node.kv();
    let invalid = Code::InvalidArgument;
    assert_refused(kv.put("123456789", "v").await, invalid, &["key: 9 bytes, at most 8 (maxKeyBytes)"]);
    assert_refused(kv.put("k", &"v".repeat(17)).await, invalid, &["value: 17 bytes, at most 16 (maxValueBytes)"]);
    let over = Some(Duration::from_millis(10_500));
    assert_refused(kv.put_for("k", "v", over).await, invalid, &["ttl: 10.5s, at most 10s (maxTtl)"]);
    kv.put_for("12345678", &"v".repeat(16), Some(Duration::from_secs(10))).await.unwrap();
}

#[tokio::test]
async fn a_full_node_refuses_puts_and_goes_on_with_the_rest() {
    let node = Node::new("full").with("max-memory", "1Mi").started().await;
    let mut kv = node.kv();
    let value = "v".repeat(100 << 10);
    let mut taken = 0;
    let refused = loop {
        match kv.put(&format!("k{taken}"), &value).await {
            Ok(_) => taken += 1,
            Err(status) => break status,
        }
        assert!(taken < 20, "a node with 1 MiB took {taken} times 100 KiB");
    };
    assert!(taken >= 9, "only {taken}");
    assert_refused(Err::<(), _>(refused), Code::ResourceExhausted, &["1048576", "(maxMemory)", "delete keys or raise"]);
    assert_eq!(node.status().await["full"], true);
    assert_eq!(node.metrics().await.value("kvasir_full"), Some(1.0));

    assert_eq!(kv.get("k0").await.unwrap().as_deref(), Some(&value[..]));
    assert!(kv.delete("k0").await.unwrap());
    kv.put("again", &value).await.unwrap();
    assert_eq!(node.status().await["full"], false);
}

#[tokio::test]
async fn a_listing_is_ordered_bounded_and_can_be_continued() {
    let node = Node::alone().await;
    let mut kv = node.kv();
    let value = "v".repeat(1 << 10);
    for key in 0..2_500 {
        kv.put(&format!("p/{key:04}"), &value).await.unwrap();
    }
    kv.put("o", "before").await.unwrap();
    kv.put("q", "after").await.unwrap();
    kv.put_for("p/0000", &value, Some(Duration::from_hours(1))).await.unwrap();
    let request = |limit, keys_only, page_token| v1::ListRequest {
        prefix: "p/".to_owned(),
        limit,
        page_token,
        keys_only,
        ..v1::ListRequest::default()
    };
    let keys = |messages: &[v1::ListResponse]| {
        messages.iter().flat_map(|m| m.entries.iter().map(|e| e.key.clone())).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (0..2_500).map(|key| format!("p/{key:04}")).collect();

    let all = kv.list(request(0, false, "".into())).await.unwrap();
    assert_eq!(keys(&all), expected);
    for message in &all {
        let bytes: usize = message.entries.iter().map(|e| e.key.len() + e.value.len()).sum();
        assert!(
            message.entries.len() <= 1000 && bytes <= (256 << 10) + value.len() + 8,
            "{bytes} bytes in one message"
        );
        assert!(message.next_page_token.is_empty());
    }
    let first = &all[0].entries[0];
    let left = Duration::try_from(first.ttl.unwrap()).unwrap();
    assert!(left <= Duration::from_hours(1) && left > Duration::from_mins(50), "{left:?}");
    assert!(first.version.is_some() && all[0].entries[1].ttl.is_none());

    let names = kv.list(request(0, true, "".into())).await.unwrap();
    assert_eq!(keys(&names), expected);
    assert!(names.iter().all(|m| m.entries.len() <= 1000 && m.entries.iter().all(|e| e.value.is_empty())));

    // In pages, with writes between them.
    let (mut got, mut token) = (Vec::new(), Bytes::new());
    loop {
        let part = kv.list(request(1_100, true, token)).await.unwrap();
        got.extend(keys(&part));
        token = part.last().unwrap().next_page_token.clone();
        if token.is_empty() {
            break;
        }
        assert_eq!(got.len() % 1_100, 0);
        assert!(kv.delete(got.last().unwrap()).await.unwrap(), "the token outlives its key");
        let other = v1::ListRequest { prefix: "q".to_owned(), page_token: token.clone(), ..Default::default() };
        assert_refused(kv.list(other).await, Code::InvalidArgument, &["page_token: belongs to a listing", "\"p/\""]);
    }
    assert_eq!(got, expected);

    // A page that ends with the last key has no token for a next page.
    let exact = kv.list(v1::ListRequest { prefix: "q".to_owned(), limit: 1, ..Default::default() }).await.unwrap();
    assert_eq!((keys(&exact), exact[0].next_page_token.len()), (vec!["q".to_owned()], 0));
    assert!(kv.list(v1::ListRequest { prefix: "none".to_owned(), ..Default::default() }).await.unwrap().is_empty());
}
