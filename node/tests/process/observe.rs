//! What a node reports about itself: health, reflection, metrics, status.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_proto::v1;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{Metrics, Node, PATIENCE, cluster, nodes};

/// The health of one of a node's services.
async fn health(node: &Node, service: &str) -> i32 {
    ask_health(node, service).await.unwrap()
}

pub(crate) async fn ask_health(node: &Node, service: &str) -> Result<i32, tonic::Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(HealthClient::new(node.channel()).check(request).await?.into_inner().status)
}

#[tokio::test]
async fn health_is_readiness() {
    // The node waits for its peer, which starts after these checks.
    let mut pair = nodes(2).into_iter().map(|node| node.with("join-timeout", "1h"));
    let (mut node, mut peer) = (pair.next().unwrap(), pair.next().unwrap());
    node.start();
    crate::harness::eventually("the client port is served", async || {
        HealthClient::new(node.channel()).check(HealthCheckRequest { service: String::new() }).await.map(drop)
    })
    .await;
    assert_eq!(health(&node, "").await, ServingStatus::NotServing as i32);
    assert_eq!(health(&node, "kvasir.v1.Kv").await, ServingStatus::NotServing as i32);
    assert_eq!(health(&node, "kvasir.v1.Cluster").await, ServingStatus::Serving as i32);

    let request = HealthCheckRequest { service: "kvasir.v1.Kv".to_owned() };
    let mut watch = HealthClient::new(node.channel()).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    peer.start();
    // A watch may repeat a state.
    while watch.message().await.unwrap().unwrap().status != ServingStatus::Serving as i32 {}
    assert_eq!(node.http("/readyz").await.unwrap(), (200, "ready\n".to_owned()));
    // The services change state one after the other.
    crate::harness::eventually("the node as a whole serves", async || match health(&node, "").await {
        now if now == ServingStatus::Serving as i32 => Ok(()),
        other => Err(other),
    })
    .await;

    let unknown = HealthCheckRequest { service: "unknown".to_owned() };
    assert_eq!(HealthClient::new(node.channel()).check(unknown).await.unwrap_err().code(), Code::NotFound);
    // A watch never ends on its own; it must not keep the node from exiting.
    node.terminate();
    assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    assert_eq!(node.ended().await.code(), Some(0));
}

macro_rules! services_by_reflection {
    ($version:ident, $node:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let asked = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("kvasir.v1.Kv".to_owned())),
            ask(MessageRequest::FileContainingSymbol("google.protobuf.Duration".to_owned())),
        ]);
        let answers = ServerReflectionClient::new($node.channel()).server_reflection_info(asked).await.unwrap();
        let mut answers = answers.into_inner();
        let mut next = async || answers.next().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = next().await else { panic!("no list") };
        for _ in 0..2 {
            let MessageResponse::FileDescriptorResponse(file) = next().await else { panic!("no file") };
            assert!(!file.file_descriptor_proto.is_empty());
        }
        list.service.into_iter().map(|service| service.name).collect::<BTreeSet<_>>()
    }};
}

#[tokio::test]
async fn reflection_tells_of_the_services() {
    let node = Node::alone().await;
    for services in [services_by_reflection!(v1, node), services_by_reflection!(v1alpha, node)] {
        for service in ["kvasir.v1.Kv", "kvasir.v1.Cluster", "grpc.health.v1.Health"] {
            assert!(services.contains(service), "{service} is not in {services:?}");
        }
    }
}

#[tokio::test]
async fn the_nodes_agree_on_who_is_there() {
    let nodes = cluster(3).await;
    let (mut orders, mut leaders) = (BTreeSet::new(), BTreeSet::new());
    let mut who_leads = 0;
    for node in &nodes {
        let mut cluster = node.cluster();
        let members = cluster.members(v1::MembersRequest {}).await.unwrap().into_inner().members;
        assert!(
            members.iter().all(|m| m.linked && m.state() == v1::MemberState::Alive && m.found_by == "static"),
            "{members:?}"
        );
        assert!(members.is_sorted_by_key(|m| m.started_at.map(|at| (at.seconds, at.nanos))), "{members:?}");
        orders.insert(members.iter().map(|m| (m.origin.clone(), m.name.clone())).collect::<Vec<_>>());

        let leader = cluster.leader(v1::LeaderRequest {}).await.unwrap().into_inner();
        assert_eq!(leader.leader.as_ref().unwrap().origin, members[0].origin, "the eldest leads");
        who_leads += u32::from(leader.is_me);
        leaders.insert(leader.leader.unwrap().name);

        let me = cluster.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!((me.cluster.as_str(), me.phase()), ("test", v1::Phase::Ready));
        let me = me.member.unwrap();
        assert_eq!((me.name.as_str(), me.role()), (node.name.as_str(), v1::Role::Member));
        assert_eq!(me.peer_address, node.peer.to_string());
        assert!(members.iter().any(|m| m.origin == me.origin));

        let status = cluster.status(v1::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.phase(), status.discovery[0].provider.as_str()), (v1::Phase::Ready, "static"));
        assert_eq!((status.discovery[0].found, status.fingerprint.len()), (3, 32));
        assert!(status.lag.is_some());
    }
    assert_eq!((orders.len(), leaders.len(), who_leads), (1, 1, 1), "{orders:?} {leaders:?}");
}

#[tokio::test]
async fn a_sidecar_waits_for_a_member_and_never_leads() {
    let mut nodes: Vec<_> = nodes(2).into_iter().map(|node| node.with("join-timeout", "300ms")).collect();
    let mut sidecar = nodes.remove(0).with("role", "sidecar");
    sidecar.start();
    crate::harness::eventually("the admin port is served", async || sidecar.http("/livez").await.map(drop)).await;
    // Waits well beyond `joinTimeout`: the sidecar must not serve its application an empty map.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let (code, why) = sidecar.http("/readyz").await.unwrap();
    assert_eq!((code, why.starts_with("joining: ")), (503, true), "{why}");
    let no_leader = sidecar.cluster().leader(v1::LeaderRequest {}).await.unwrap_err();
    assert_eq!(no_leader.code(), Code::Unavailable, "{no_leader}");

    let member = nodes.remove(0).started().await;
    member.kv().put("k", "v").await.unwrap();
    sidecar.ready().await;
    // The node may have been ready a moment before the put, which is then in flight.
    crate::harness::eventually("the sidecar has the key", async || {
        sidecar.kv().get("k").await.unwrap().filter(|value| value == "v").ok_or("not there")
    })
    .await;
    assert_eq!(sidecar.status().await["role"], "sidecar");
    let leader = sidecar.cluster().leader(v1::LeaderRequest {}).await.unwrap().into_inner();
    assert_eq!((leader.leader.unwrap().name, leader.is_me), (member.name.clone(), false));
}

#[tokio::test]
async fn the_status_document_has_what_the_operator_reads() {
    let nodes = cluster(2).await;
    nodes[0].kv().put("k", "v").await.unwrap();
    nodes[0].kv().delete("k").await.unwrap();
    nodes[0].kv().put("l", "v").await.unwrap();
    let mut status = nodes[0].status().await;
    let text = |field: &str| status[field].as_str().unwrap_or_else(|| panic!("{field} in {status}")).to_owned();
    let number = |field: &str| status[field].as_u64().unwrap_or_else(|| panic!("{field} in {status}"));
    assert_eq!((text("name"), text("role"), text("cluster")), ("n0".into(), "member".into(), "test".into()));
    assert_eq!((text("phase"), text("version")), ("ready".into(), env!("CARGO_PKG_VERSION").into()));
    assert!(text("origin").len() == 16 && text("fingerprint").len() == 32);
    assert_eq!((number("keys"), number("tombstones"), number("maxMemoryBytes")), (1, 1, 0));
    assert!(number("memoryBytes") > 0 && number("startedAtMs") > 1_700_000_000_000);
    assert_eq!(status["full"], false);
    let founding = &status["founding"];
    assert!(founding["atMs"].as_u64().is_some_and(|at| at > 1_700_000_000_000), "{status}");
    assert_eq!((founding["by"].as_str().map(str::len), &status["formerOrigins"]), (Some(16), &serde_json::json!([])));
    assert_eq!(*founding, nodes[1].status().await["founding"], "both hold one map");
    assert!(number("lagMs") < 2_000, "{status}");
    let peer = &status["peers"][0];
    assert_eq!((&peer["name"], &peer["role"], &peer["state"]), (&"n1".into(), &"member".into(), &"alive".into()));
    assert_eq!((&peer["linked"], &peer["foundBy"]), (&true.into(), &"static".into()));
    assert_eq!(peer["address"], nodes[1].peer.to_string());
    assert_eq!(peer["origin"].as_str().map(str::len), Some(16));
    let provider = serde_json::json!({
        "provider": "static", "found": 2, "error": Value::Null, "failures": 0, "members": ["n0", "n1"],
    });
    // Which of the two is the elder is chance.
    status["discovery"][0]["members"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
    assert_eq!(status["discovery"], serde_json::json!([provider]));

    let alone = Node::alone().await;
    assert_eq!(alone.status().await["lagMs"], Value::Null);
}

/// Parses a page as strictly as `OpenMetrics` requires: each series after its family's type, no duplicates, an end.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut series = BTreeMap::new();
    let (body, end) = page.rsplit_once("# EOF\n").expect("a page ends with EOF");
    assert_eq!(end, "");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (family, kind) = rest.split_once(' ').unwrap();
            assert!(family.starts_with("kvasir_"), "{line}");
            assert_eq!(types.insert(family, kind), None, "{family} twice");
        } else if !line.starts_with("# HELP ") && !line.starts_with("# UNIT ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let suffixes = ["_total", "_info", "_bucket", "_count", "_sum", ""];
            let kind = suffixes
                .iter()
                .find_map(|s| types.get(bare.strip_suffix(s)?))
                .unwrap_or_else(|| panic!("{line} has no type"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line} has no number"));
            assert!(*kind != "counter" || (bare.ends_with("_total") && value >= 0.0), "{line}");
            assert_eq!(series.insert(name.to_owned(), value), None, "{name} twice");
        }
    }
    series
}

#[tokio::test]
async fn the_metrics_are_well_formed_and_say_what_happened() {
    let nodes = cluster(2).await;
    let mut kv = nodes[0].kv();
    kv.put("k", "v").await.unwrap();
    kv.get("k").await.unwrap();
    kv.get("none").await.unwrap();
    kv.put("", "v").await.unwrap_err();
    kv.all().await.unwrap();
    // Once each node has heard from the other.
    crate::harness::eventually("the lag is that of heartbeats", async || {
        let page = nodes[0].metrics().await;
        page.value("kvasir_lag_seconds").filter(|lag| *lag < 2.0).ok_or(page.0)
    })
    .await;
    kv.0.put(v1::PutRequest {
        key: "k".to_owned(),
        value: vec![0; 16 << 20].into(),
        ttl: None,
        ..v1::PutRequest::default()
    })
    .await
    .unwrap_err();
    let Metrics(page) = nodes[0].metrics().await;
    let series = parse(&page);
    let value = |name: &str| *series.get(name).unwrap_or_else(|| panic!("{name} is not in\n{page}"));
    let requests = |method: &str, code: &str| {
        value(&format!("kvasir_requests_total{{method=\"/kvasir.v1.Kv/{method}\",code=\"{code}\"}}"))
    };
    assert_eq!((requests("Put", "OK"), requests("Put", "INVALID_ARGUMENT")), (1.0, 2.0));
    assert_eq!((requests("Get", "OK"), requests("Get", "NOT_FOUND"), requests("List", "OK")), (1.0, 1.0, 1.0));
    assert_eq!(series.get("kvasir_request_duration_seconds_count{method=\"/kvasir.v1.Kv/Put\"}"), Some(&3.0));
    assert_eq!((value("kvasir_keys"), value("kvasir_tombstones")), (1.0, 0.0));
    assert_eq!((value("kvasir_phase{phase=\"ready\"}"), value("kvasir_phase{phase=\"joining\"}")), (1.0, 0.0));
    assert_eq!((value("kvasir_peers{state=\"alive\"}"), value("kvasir_links")), (1.0, 1.0));
    assert_eq!(
        (
            value("kvasir_discovery_found{provider=\"static\"}"),
            value("kvasir_membership_events_total{event=\"joined\"}")
        ),
        (2.0, 1.0)
    );
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&value("kvasir_lag_seconds")) && value("kvasir_memory_bytes") > 0.0);
    assert!(value("kvasir_process_start_time_seconds") > 1.7e9);
    let build = format!("kvasir_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(series.get(&build), Some(&1.0));
    // A call of an unknown method is counted, but adds no series.
    let channel = nodes[0].channel();
    for method in ["/kvasir.v1.Kv/Nothing", "/made.up/Name"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<v1::GetRequest, v1::GetResponse>::default();
        let status = grpc
            .unary(tonic::Request::new(v1::GetRequest::default()), method.parse().unwrap(), codec)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
    let page = nodes[0].metrics().await;
    assert_eq!(page.value("kvasir_requests_total{method=\"other\",code=\"UNIMPLEMENTED\"}"), Some(2.0), "{}", page.0);
}
