//! Durations, sizes, hosts and labels in the settings of a node and in a `KvCluster`. Each survives a round
//! trip, and Kubernetes reads a size of a node's settings as the same number.

use kvasir_formats::{
    duration::{self, DurationText},
    host_port::HostPort,
    quantity::{self, Quantity},
};
use kvasir_node::config::{Labels, Servers};

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
    let Ok(read) = duration::parse(text) else { return };
    // The formats of `--print-config` and of the operator.
    for written in [DurationText(read).to_string(), duration::in_seconds(read)] {
        assert_eq!(duration::parse(&written), Ok(read), "{text:?} is not {written}");
    }
}

fn quantities(text: &str) {
    if let Ok(node) = text.parse::<Quantity>() {
        assert_eq!(node.to_string().parse(), Ok(node), "{text:?}");
        let milli = quantity::milli(text);
        assert_eq!(milli, Some(i128::from(node.0) * 1000), "{text:?} is not the same to Kubernetes");
        assert_eq!(quantity::units(text), Some(node.0), "{text:?}");
    }
    if let Some(units) = quantity::units(text) {
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
