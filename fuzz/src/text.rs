//! Durations, sizes, hosts and labels as people write them, in the node's settings and in the `KvCluster`. Each
//! survives a round trip, and two parts that read the same text agree.

use std::time::Duration;

use kvasir_crds::duration;
use kvasir_node::config::{DurationText, HostPort, Labels, Quantity, Servers};
use kvasir_operator::quantity;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    durations(text);
    quantities(text);
    if let Ok(host) = text.parse::<HostPort>() {
        assert!(host.port != 0 && !host.host.is_empty());
        assert_eq!(host.to_string().parse(), Ok(host), "{text:?}");
    }
    if let Ok(Labels(labels)) = text.parse::<Labels>() {
        assert!(labels.keys().all(|key| !key.is_empty()), "{text:?}");
    }
    let Ok(Servers(servers)) = text.parse::<Servers>();
    assert!(!servers.is_empty());
}

fn durations(text: &str) {
    let node = text.parse::<DurationText>();
    if let Ok(node) = &node {
        assert_eq!(node.to_string().parse(), Ok(*node), "{text:?}");
    }
    let cluster = duration::parse(text);
    if let Ok(cluster) = cluster {
        assert_eq!(duration::parse(&duration::format(cluster)), Ok(cluster), "{text:?}");
        // The operator copies these values from a KvCluster into a node's settings.
        let written = duration::format(cluster).parse::<DurationText>();
        assert!(written == Ok(DurationText(cluster)) || cluster > Duration::from_millis(u64::MAX), "{text:?}");
    }
    if cluster.as_ref().is_ok_and(|cluster| *cluster <= Duration::from_millis(u64::MAX)) || node.is_ok() {
        assert_eq!(node.ok().map(|node| node.0), cluster.ok(), "{text:?} is not the same to node and operator");
    }
}

fn quantities(text: &str) {
    if let Ok(node) = text.parse::<Quantity>() {
        assert_eq!(node.to_string().parse(), Ok(node), "{text:?}");
        let milli = quantity::parse_milli(text);
        assert_eq!(milli, Some(i128::from(node.0) * 1000), "{text:?} is not the same to node and operator");
        assert_eq!(quantity::parse_units(text), Some(node.0), "{text:?}");
    }
    if let Some(units) = quantity::parse_units(text) {
        // The operator's output.
        assert_eq!(units.to_string().parse(), Ok(Quantity(units)), "{text:?}");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "",
        "1m30s",
        "500ms",
        "2h",
        "18446744073709551615ms",
        "307445734561825860m",
        "256Mi",
        "1.5Gi",
        "1e3",
        "-1",
        "0.1m",
        "16777215Ti",
        "name:7071",
        "[fd00::1]:7071",
        "a=b,c=d=e",
        "nats://a:1, nats://b:2",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
