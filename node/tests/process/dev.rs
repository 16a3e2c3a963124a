//! `kvasir-node dev`: a cluster in one process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kvasir_client::{Client, PutOptions};
use kvasir_node::config::DevSettings;
use kvasir_node::dev::DevCluster;

use crate::harness::{command, eventually, loopback};

/// The clients' addresses and the startup time, as the process printed them.
fn printed(child: &mut Child) -> (Vec<SocketAddr>, u64) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().expect("it says when it is ready");
    let took = first.split("after ").nth(1).and_then(|it| it.strip_suffix(" ms")).and_then(|it| it.parse().ok());
    let rows = lines.by_ref().take_while(|line| !line.starts_with("Try: ")).collect::<Vec<_>>();
    let of_node = |row: &String| row.split_whitespace().nth(1)?.parse().ok();
    (rows.iter().filter(|row| row.starts_with("dev-")).filter_map(of_node).collect(), took.expect("a number of ms"))
}

#[tokio::test]
async fn three_nodes_run_in_one_process_until_ctrl_c() {
    let mut child = command().args(["dev", "--nodes", "3", "--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let (clients, took) = printed(&mut child);
    assert_eq!(clients.len(), 3);
    eprintln!("ready after {took} ms");
    let [first, second, third] = [0, 1, 2].map(|n: usize| clients[n].to_string());
    Client::connect(first).await.unwrap().put("greeting", "hello", PutOptions::default()).await.unwrap();
    for address in [second, third] {
        let client = Client::connect(address).await.unwrap();
        eventually("the key is on every node", async || match client.get("greeting").await {
            Ok(Some(entry)) if entry.value == "hello" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(client.members().await.unwrap().len(), 3);
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = eventually("it ends", async || child.try_wait().unwrap().ok_or("it runs")).await;
    assert_eq!(status.code(), Some(0));
}

/// Under a second on an idle machine. A busy one gets five seconds and several attempts. The bug that this test would
/// catch takes longer: a node that waits for its join timeout takes ten seconds.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn it_is_ready_without_waiting_for_a_timeout() {
    let mut took = Vec::new();
    for _ in 0..10 {
        let settings = DevSettings { nodes: 3, port: 0, log_level: "error".to_owned() };
        let began = Instant::now();
        let cluster = DevCluster::start(&settings).await.unwrap();
        cluster.ready().await;
        took.push(began.elapsed());
        cluster.stop().await;
        if took.last() < Some(&READY_WITHIN) {
            return;
        }
    }
    panic!("never within {READY_WITHIN:?}: {took:?}");
}

#[tokio::test]
async fn dev_refuses_what_it_cannot_do() {
    let taken = std::net::TcpListener::bind(loopback()).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (words, code, parts) in [
        (&["dev", "--nodes", "0"][..], 2, &["--nodes", "1..=16"][..]),
        (&["dev", "--port", "65530"], 1, &["--port", "65530", "3 nodes"]),
        (&["dev", "--port", &port], 1, &[&port, "give another --port"]),
        (&["--name", "n", "dev"], 2, &["dev"]),
        (&["dev", "--log-level", "shout=="], 2, &["logLevel"]),
    ] {
        let mut child = command().args(words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{words:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{words:?}: {part:?} is not in {message:?}");
        }
    }
}
