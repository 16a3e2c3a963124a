//! Nodes in a cgroup with a memory limit, as in a container, without `maxMemory`: full nodes refuse writes, none is
//! killed, and every accepted write is there.

use std::collections::BTreeSet;

use kvasir_proto::v1;
use tonic::Code;

use crate::harness::{Kv, Node, command, eventually, meshed, nodes};
use crate::memory_group::MemoryGroup;

/// A small container.
const LIMIT: u64 = 96 << 20;
/// The share for entries: see `kvasir_node::memory::share`.
const SHARE: u64 = 34 << 20;
/// More than the whole container's memory.
const PUTS: usize = 120;
const MEGABYTE: usize = 1_000_000;
/// Clients that write at the same time.
const CLIENTS: usize = 16;

fn big(n: usize) -> String {
    // Different letters, so that no two pages of memory are equal.
    char::from(b'a' + u8::try_from(n % 26).unwrap()).to_string().repeat(MEGABYTE)
}

/// Puts a value and returns whether it was accepted. A full node is the only reason to refuse it.
async fn put(kv: &mut Kv, key: &str, value: &str) -> bool {
    match kv.put(key, value).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::ResourceExhausted, "{key}: {status}");
            false
        }
    }
}

/// The node runs, was never killed, is full, and holds the accepted values.
async fn holds(node: &mut Node, group: &MemoryGroup, accepted: &BTreeSet<usize>) {
    assert!(node.runs(), "{} ended", node.name);
    assert_eq!(group.killed(), 0, "{}: the kernel killed a process", node.name);
    let status = node.status().await;
    assert_eq!(status["maxMemoryBytes"], SHARE, "{status}");
    assert_eq!((&status["maxMemoryFrom"], &status["processLimitBytes"]), (&"limit".into(), &LIMIT.into()), "{status}");
    assert!(status["memoryConcern"].is_null(), "{status}");
    let mut kv = node.kv();
    for &n in accepted {
        let value = kv.get(&key(n)).await.unwrap();
        assert!(value.as_ref() == Some(&big(n)), "{}: {} is not what was put", node.name, key(n));
    }
    assert_eq!(group.killed(), 0, "{}: the kernel killed a process", node.name);
    let (most, held) = (group.most_taken(), &status["memoryBytes"]);
    eprintln!("{}: entries are counted as {held} bytes, the process took {most} at most", node.name);
}

fn key(n: usize) -> String {
    format!("k{n:04}")
}

/// Several clients, each on its own connection, put these values at the same time through all nodes; returns the
/// accepted ones.
async fn put_at_once(nodes: &[Node], values: &BTreeSet<usize>) -> BTreeSet<usize> {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut kv = nodes[client % nodes.len()].kv();
        let mine: Vec<_> = values.iter().copied().skip(client).step_by(CLIENTS).collect();
        clients.spawn(async move {
            let mut accepted = BTreeSet::new();
            for n in mine {
                if put(&mut kv, &key(n), &big(n)).await {
                    accepted.insert(n);
                }
            }
            accepted
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_in_a_container_one_client() {
    let group = MemoryGroup::new(LIMIT);
    let mut node = Node::new("n").inside(&group).started().await;
    let mut kv = node.kv();
    let mut accepted = BTreeSet::new();
    for n in 0..PUTS {
        if put(&mut kv, &key(n), &big(n)).await {
            accepted.insert(n);
        }
    }
    assert!(accepted.len() > 25 && accepted.len() < 40, "{accepted:?}");
    holds(&mut node, &group, &accepted).await;
    // Overwritten values stay in the log of own writes.
    for n in 0..PUTS {
        let n = n % accepted.len();
        assert!(put(&mut kv, &key(n), &big(n)).await, "it takes no more than what it replaces");
    }
    holds(&mut node, &group, &accepted).await;
    assert!(node.log().contains("entries have a limit"), "{}", node.log());
    let page = node.metrics().await;
    assert_eq!(page.value("kvasir_memory_limit_bytes"), Some(SHARE as f64), "{}", page.0);
    assert_eq!(page.value("kvasir_process_memory_limit_bytes"), Some(LIMIT as f64), "{}", page.0);
    assert_eq!(page.value("kvasir_memory_limit_from{from=\"limit\"}"), Some(1.0), "{}", page.0);
    assert_eq!(page.value("kvasir_memory_unbounded"), Some(0.0), "{}", page.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_in_a_container_many_clients() {
    let group = MemoryGroup::new(LIMIT);
    let mut node = Node::new("n").inside(&group).started().await;
    let accepted = put_at_once(std::slice::from_ref(&node), &(0..PUTS).collect()).await;
    assert!(accepted.len() > 25, "{accepted:?}");
    holds(&mut node, &group, &accepted).await;
    // Once more, all at the same time, over the existing values, while others read.
    let reading = {
        let mut kv = node.kv();
        let accepted = accepted.clone();
        tokio::spawn(async move {
            for &n in &accepted {
                assert!(kv.get(&key(n)).await.unwrap().is_some_and(|value| value.len() == MEGABYTE));
            }
        })
    };
    for _ in 0..3 {
        assert_eq!(put_at_once(std::slice::from_ref(&node), &accepted).await, accepted, "each replaces its like");
    }
    reading.await.unwrap();
    holds(&mut node, &group, &accepted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_in_containers_three_members() {
    let groups: Vec<_> = (0..3).map(|_| MemoryGroup::new(LIMIT)).collect();
    let mut nodes: Vec<_> = nodes(3).into_iter().zip(&groups).map(|(node, group)| node.inside(group)).collect();
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    // Through one node after another, so that peers' writes arrive at a node that is already full.
    let mut accepted = BTreeSet::new();
    for n in 0..PUTS {
        if put(&mut nodes[n % 3].kv(), &key(n), &big(n)).await {
            accepted.insert(n);
        }
    }
    assert!(accepted.len() > 25, "{accepted:?}");
    eventually("all nodes hold the accepted values", async || {
        for node in &nodes {
            let status = node.status().await;
            if status["keys"] != accepted.len() {
                return Err(status);
            }
        }
        Ok(())
    })
    .await;
    for (node, group) in nodes.iter_mut().zip(&groups) {
        holds(node, group, &accepted).await;
    }
    // Each member's clients write the existing values again, all at the same time: directly and through the others.
    // A member that took more of its peers' writes than of its own may refuse even that.
    assert!(!put_at_once(&nodes, &accepted).await.is_empty());
    for (node, group) in nodes.iter_mut().zip(&groups) {
        holds(node, group, &accepted).await;
    }
    // A member that restarts takes the whole map.
    nodes[0].kill();
    nodes[0].start();
    nodes[0].ready().await;
    for (node, group) in nodes.iter_mut().zip(&groups) {
        holds(node, group, &accepted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_in_a_container_small_values() {
    let group = MemoryGroup::new(LIMIT);
    let mut node = Node::new("n").inside(&group).started().await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..4 {
        let mut kv = node.kv();
        clients.spawn(async move {
            let mut accepted = 0;
            loop {
                let put = |n| v1::PutRequest {
                    key: format!("{client}/{:08}", accepted + n),
                    value: vec![b'v'; 64].into(),
                    ..v1::PutRequest::default()
                };
                let puts = (0..1000).map(put).collect();
                let request = v1::BatchPutRequest { puts, ..v1::BatchPutRequest::default() };
                match kv.0.batch_put(request).await.map(tonic::Response::into_inner) {
                    Ok(answer) => {
                        accepted += answer.versions.len();
                        let full = Code::ResourceExhausted as i32;
                        assert!(answer.failure.is_none_or(|failure| failure.code == full), "only for want of memory");
                    }
                    Err(status) if status.code() == Code::ResourceExhausted => return accepted,
                    Err(status) => panic!("{status}"),
                }
            }
        });
    }
    let accepted: usize = clients.join_all().await.into_iter().sum();
    assert!(accepted > 50_000, "{accepted}");
    assert!(node.runs());
    assert_eq!((group.killed(), node.status().await["keys"].as_u64()), (0, Some(accepted as u64)));
}

#[tokio::test]
async fn a_container_too_small_is_refused_at_the_start() {
    let group = MemoryGroup::new(40 << 20);
    let script = format!("echo $$ > {} && exec \"$0\" \"$@\"", group.path().join("cgroup.procs").display());
    let node = command();
    let output = std::process::Command::new("sh").args(["-c", &script]).arg(node.get_program()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    for part in ["maxMemory: the memory limit of the process is 40Mi (", "raise the limit"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_node_without_any_limit_says_so() {
    let node = Node::alone().await;
    let status = node.status().await;
    assert!(status["memoryConcern"].as_str().is_some_and(|concern| concern.contains("or maxMemory")), "{status}");
    assert_eq!(node.metrics().await.value("kvasir_memory_unbounded"), Some(1.0));
    assert!(node.log().contains("nothing limits the memory of entries"), "{}", node.log());
}
