//! Messages from a NATS server: announcements of other nodes, or anything.

use kvasir_node::discovery::fuzzing::{read_announcement, write_announcement};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(addresses) = read_announcement(bytes) else { return };
    assert!(bytes.len() <= 1024 && addresses.len() <= 8, "more than the limit was taken");
    for address in &addresses {
        assert!(!address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0, "{address}");
    }
    let text = write_announcement(addresses.clone());
    assert_eq!(read_announcement(&text).as_ref(), Ok(&addresses), "a node does not understand another node");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        write_announcement(vec![
            "10.0.0.1:7071".parse().expect("an address"),
            "[fd00::1]:1".parse().expect("one, too"),
        ]),
        text(r#"{"kvasir":1,"addresses":["0.0.0.0:7","224.0.0.1:7","10.0.0.1:0","[fe80::1%3]:7"],"later":true}"#),
        text(r#"{"kvasir":2,"addresses":[]}"#),
        text(""),
    ]
}
