//! A member's answer to the operator, and the status derived from it.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kvasir_crds::KvCluster;
use kvasir_operator::reconcile::poll::{Answers, NodeStatus};
use kvasir_operator::reconcile::status::{Observed, status};
use kvasir_operator::webhook::pods::Sidecars;
use serde_json::json;

use crate::input::{Input, chunk};

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let answers: Answers = (0..3)
        .filter_map(|at| {
            let answer = serde_json::from_slice::<NodeStatus>(input.chunk());
            answer.ok().map(|answer| (format!("demo-{at}"), Ok(answer)))
        })
        .collect();
    let ready = usize::from(input.byte() % 4);
    let pods: Vec<Pod> = (0..3).map(|at| pod(at, at < ready)).collect();
    let cluster = json!({
        "apiVersion": "kvasir.dev/v1alpha1", "kind": "KvCluster",
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u", "generation": 2}, "spec": {"replicas": 3},
    });
    let mut cluster: KvCluster = serde_json::from_value(cluster).expect("a cluster");
    let look = |cluster: &KvCluster| {
        status(&Observed {
            cluster,
            obstacle: None,
            concern: None,
            stateful_set: None,
            changed: false,
            pods: &pods,
            answers: &answers,
            sidecars: Some(&Sidecars::default()),
            warnings: &[],
            unknown: &[],
            now: Timestamp::UNIX_EPOCH,
        })
    };
    let first = look(&cluster);
    assert_eq!(first.members.len(), 3);
    assert!(!first.converged || answers.len() == 3, "converged although a member did not answer: {first:?}");
    serde_json::to_string(&first).expect("a status is JSON");
    cluster.status = Some(first.clone());
    assert_eq!(look(&cluster), first, "the same observation gives another status");
}

fn pod(at: usize, ready: bool) -> Pod {
    let ready = if ready { "True" } else { "False" };
    let pod = json!({
        "metadata": {"name": format!("demo-{at}"), "labels": {"controller-revision-hash": "r"}},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]},
    });
    serde_json::from_value(pod).expect("a pod")
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let answer = json!({
        "origin": "ab", "version": "0.1.0", "phase": "ready", "founding": {"atMs": 5, "by": "ab"}, "keys": 12, "maxMemoryBytes": 0, "full": false,
        "fingerprint": "cd", "lagMs": 3, "discovery": [{"provider": "dns", "error": "no"}], "peers": [{"origin": "ac", "foundBy": "dns"}],
    });
    let one = chunk(answer.to_string().as_bytes());
    let lost = chunk(json!({"lagMs": u64::MAX, "keys": u64::MAX, "full": true}).to_string().as_bytes());
    vec![[&one[..], &one, &one, &[3]].concat(), [&one[..], &lost, b"\x00\x04null\x02"].concat()]
}
