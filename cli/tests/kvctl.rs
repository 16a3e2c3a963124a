//! `kvctl` against a stand-in for a node: what it prints, byte for byte, and its exit codes.

use kvasir_testing::node::{Node, Served};
use serde_json::{Value as Json, json};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn text(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""));
        std::str::from_utf8(&self.stdout).unwrap()
    }

    fn json(&self) -> Json {
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// One line on standard error, nothing on standard output.
    fn fails(&self, code: i32, message: &str) {
        assert_eq!((self.code, &self.stdout[..]), (code, &b""[..]), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.starts_with("kvctl: ") && self.stderr.contains(message), "{}", self.stderr);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.args(args).env_remove("KVASIR_ADDRESS").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn finish(mut command: Command, input: &[u8]) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvctl starts");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = tokio::spawn(async move {
        // A program that does not read its input closes the pipe, which is not an error.
        let _ = stdin.write_all(&input).await;
    });
    let output = child.wait_with_output().await.unwrap();
    feed.await.unwrap();
    Ran {
        code: output.status.code().expect("ended by itself"),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn kvctl(node: &Served, args: &[&str]) -> Ran {
    let mut command = command(args);
    command.env("KVASIR_ADDRESS", node.address.to_string());
    finish(command, b"").await
}

fn node() -> Served {
    Node::new("demo-0").serve()
}

#[tokio::test]
async fn get_prints_only_the_value() {
    let node = node();
    assert_eq!(kvctl(&node, &["put", "k", "hello"]).await.text(), "stored\n");
    assert_eq!(kvctl(&node, &["get", "k"]).await.text(), "hello");
}

#[tokio::test]
async fn any_bytes_pass_through_stdin_and_stdout() {
    let node = node();
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut put = command(&["put", "blob", "-"]);
    put.env("KVASIR_ADDRESS", node.address.to_string());
    finish(put, &bytes).await.text();
    let got = kvctl(&node, &["get", "blob"]).await;
    assert_eq!(got.code, 0);
    assert!(got.stdout == bytes, "{} bytes came back", got.stdout.len());
    assert_eq!(kvctl(&node, &["put", "dash", "--", "-v"]).await.text(), "stored\n");
    assert_eq!(kvctl(&node, &["get", "dash"]).await.text(), "-v");
    assert_eq!(kvctl(&node, &["put", "empty", ""]).await.text(), "stored\n");
    assert_eq!(kvctl(&node, &["get", "empty"]).await.text(), "");
}

#[tokio::test]
async fn missing_key_exits_with_3() {
    let node = node();
    kvctl(&node, &["get", "nope"]).await.fails(3, "key 'nope' does not exist");
    let exists = kvctl(&node, &["exists", "nope"]).await;
    assert_eq!((exists.code, &exists.stdout[..], exists.stderr.as_str()), (3, &b"false\n"[..], ""));
    let got = kvctl(&node, &["-o", "json", "get", "nope"]).await;
    assert_eq!((got.code, got.json()), (3, json!({"key": "nope", "found": false})));
    let exists = kvctl(&node, &["-o", "json", "exists", "nope"]).await;
    assert_eq!((exists.code, exists.json()), (3, json!({"key": "nope", "exists": false})));
}

#[tokio::test]
async fn exists_and_delete_print_what_existed() {
    let node = node();
    kvctl(&node, &["put", "k", "v"]).await.text();
    assert_eq!(kvctl(&node, &["exists", "k"]).await.text(), "true\n");
    assert_eq!(kvctl(&node, &["delete", "k"]).await.text(), "deleted\n");
    assert_eq!(kvctl(&node, &["delete", "k"]).await.text(), "was not there\n");
    assert_eq!(kvctl(&node, &["-o", "json", "delete", "k"]).await.json(), json!({"key": "k", "existed": false}));
}

#[tokio::test]
async fn put_with_ttl_expires() {
    let node = node();
    kvctl(&node, &["put", "k", "v", "--ttl", "1h1m"]).await.text();
    let left = kvctl(&node, &["get", "k", "-o", "json"]).await.json()["ttlMs"].as_u64().unwrap();
    assert!((3_600_000..=3_660_000).contains(&left), "{left}");
    kvctl(&node, &["put", "k", "v", "--ttl", "1ms"]).await.text();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(kvctl(&node, &["get", "k"]).await.code, 3);
}

#[tokio::test]
async fn json_carries_text_and_bytes() {
    let node = node();
    let put = kvctl(&node, &["-o", "json", "put", "k", "grüß"]).await.json();
    assert_eq!(put, json!({"key": "k", "version": "0000000000000001-000000000000feed"}));
    let got = kvctl(&node, &["-o", "json", "get", "k"]).await.json();
    let expected = json!({
        "key": "k", "value": "Z3LDvMOf", "text": "grüß", "ttlMs": null,
        "version": "0000000000000001-000000000000feed",
    });
    assert_eq!(got, expected);
}

#[tokio::test]
async fn list_prints_a_table_or_keys_or_json() {
    let node = node();
    for (key, value) in [("a/1", "one"), ("a/long-key", "two\nlines"), ("b", "")] {
        kvctl(&node, &["put", key, value]).await.text();
    }
    let table = "KEY         BYTES  TTL  VALUE\na/1         3      -    one\na/long-key  9      -    two\\nlines\n";
    assert_eq!(kvctl(&node, &["list", "a/"]).await.text(), table);
    assert_eq!(kvctl(&node, &["list", "--keys-only"]).await.text(), "a/1\na/long-key\nb\n");
    assert_eq!(kvctl(&node, &["list", "--keys-only", "--limit", "2"]).await.text(), "a/1\na/long-key\n");
    assert_eq!(kvctl(&node, &["list", "none/"]).await.text(), "");
    let lines = kvctl(&node, &["-o", "json", "list"]).await;
    let lines: Vec<Json> = lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[1]["text"], &lines[2]["value"]), (&json!("two\nlines"), &json!("")));
    let keys = kvctl(&node, &["-o", "json", "list", "b", "--keys-only"]).await.json();
    assert_eq!(keys, json!({"key": "b", "version": "0000000000000003-000000000000feed", "ttlMs": null}));
}

#[tokio::test]
async fn closed_output_is_not_an_error() {
    let node = node();
    for i in 0..100 {
        let client = kvasir_client::Client::connect(node.address.to_string()).await.unwrap();
        client.put(format!("k{i}"), vec![b'x'; 4000], kvasir_client::PutOptions::default()).await.unwrap();
    }
    let mut list = command(&["-o", "json", "list"]);
    list.env("KVASIR_ADDRESS", node.address.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = list.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

#[tokio::test]
async fn cluster_verbs_print_tables_and_json() {
    let node = node();
    let members = kvctl(&node, &["members"]).await;
    let lines: Vec<_> = members.text().lines().collect();
    assert_eq!(lines.len(), 3);
    let column = lines[0].find("ROLE").unwrap();
    assert!(lines[1][column..].starts_with("member ") && lines[2][column..].starts_with("sidecar "), "{lines:?}");
    let members = kvctl(&node, &["-o", "json", "members"]).await.json();
    let first = json!({
        "name": "demo-0", "origin": "000000000000feed", "role": "member", "address": "10.0.0.1:7071", "state": "alive",
        "startedAtMs": 1_700_000_000_005_u64, "version": "0.1.0", "linked": true, "foundBy": "dns",
    });
    assert_eq!(members["members"][0], first);
    assert_eq!(members["members"][1]["foundBy"], Json::Null);

    assert_eq!(kvctl(&node, &["leader"]).await.text(), "demo-0\n");
    assert_eq!(kvctl(&node, &["-o", "json", "leader"]).await.json(), json!({"leader": first, "isMe": true}));
    let who = kvctl(&node, &["whoami"]).await;
    assert!(
        who.text().starts_with(
            "name:         demo-0\nrole:         member\ncluster:      apps/demo\ncluster uid:  2c1ea3d5\n"
        ),
        "{}",
        who.text()
    );
    let status = kvctl(&node, &["status"]).await;
    assert!(
        status.text().contains("\ndiscovery dns:              3 found (demo-0), failing: no such name\n"),
        "{}",
        status.text()
    );
    for line in [
        "seats:                      1 evicted, 2 member",
        "deletes forgotten:          up to 7.0s ago",
        "overfull:                   yes: it lacks writes of peers that it had no room for (maxMemory)",
        "returns:                    4",
        "refused demo-2:             its clock is 90s ahead of ours",
        "cannot join 10.0.0.7:7071:  it has another key",
        "waiting:                    does not reach 10.0.0.8:7071",
    ] {
        assert!(status.text().lines().any(|it| it == line), "no '{line}' in\n{}", status.text());
    }
    assert!(status.text().lines().any(|it| it.starts_with("founded:") && it.ends_with(" ago")), "{}", status.text());
    let status = kvctl(&node, &["-o", "json", "status"]).await.json();
    assert_eq!(status["foundedAtMs"], json!(1_700_000_000_007_u64));
    assert_eq!((&status["phase"], &status["lagMs"]), (&json!("syncing"), &json!(12)));
    assert_eq!((&status["maxMemoryBytes"], &status["member"]), (&Json::Null, &first));
    assert_eq!(status["seats"], json!({"joining": 0, "member": 2, "evicted": 1, "ended": 0}));
    assert_eq!((&status["overfull"], &status["returns"]), (&json!(true), &json!(4)));
    assert_eq!(status["collectedAgeMs"], json!(7000));
    assert_eq!(status["skewed"], json!([{"name": "demo-2", "reason": "its clock is 90s ahead of ours"}]));
    let unjoinable = json!({"address": "10.0.0.7:7071", "name": null, "reason": "key", "why": "it has another key"});
    assert_eq!(status["unjoinable"], json!([unjoinable]));
    assert_eq!(status["waitsFor"], json!(["does not reach 10.0.0.8:7071"]));
}

#[tokio::test]
async fn unconfirmed_write_exits_with_6() {
    let node = node();
    kvctl(&node, &["put", "k", "v"]).await.text();
    assert_eq!(kvctl(&node, &["touch", "k"]).await.text(), "touched\n");
    kvctl(&node, &["touch", "none", "--ack", "all"]).await.fails(3, "does not exist");
    kvctl(&node, &["touch", "k", "--ack", "1"]).await.fails(6, "1 did not");
    kvctl(&node, &["delete", "k", "--ack", "all"]).await.fails(6, "stays");
}

#[tokio::test]
async fn refused_input_and_full_node_exit_with_5() {
    let node = node();
    kvctl(&node, &["put", "", "v"]).await.fails(5, "key: must be 1 to 1024 bytes");
    kvctl(&node, &["put", "k", "v", "--ttl", "0s"]).await.fails(5, "ttl");
    node.node.levers.full.store(true, Ordering::SeqCst);
    kvctl(&node, &["put", "k", "v"]).await.fails(5, "maxMemory");
}

#[tokio::test]
async fn unavailable_node_exits_with_4_in_time() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let started = Instant::now();
    for verb in [&["get", "k"][..], &["list"]] {
        let words = [&["--address", &free, "--timeout", "1s"], verb].concat();
        finish(command(&words), b"").await.fails(4, "connection refused");
    }
    let node = node();
    node.node.levers.draining.store(true, Ordering::SeqCst);
    kvctl(&node, &["--timeout", "1s", "get", "k"]).await.fails(4, "draining");
    node.node.levers.draining.store(false, Ordering::SeqCst);
    node.node.levers.silent.store(true, Ordering::SeqCst);
    kvctl(&node, &["--timeout", "300ms", "get", "k"]).await.fails(4, "no answer within 300 ms");
    // The timeouts add up to 3.3 s; with the default of 10 s they would add up to 40 s.
    assert!(started.elapsed() < Duration::from_secs(30), "took {:?}", started.elapsed());
}

#[tokio::test]
async fn wrong_command_line_exits_with_2() {
    for wrong in [&["put", "k"][..], &["put", "k", "v", "--ttl", "soon"], &["frobnicate"], &[]] {
        let ran = finish(command(wrong), b"").await;
        assert_eq!((ran.code, &ran.stdout[..]), (2, &b""[..]), "{wrong:?}");
        assert!(!ran.stderr.is_empty());
    }
    finish(command(&["--address", "tcp://demo", "get", "k"]), b"").await.fails(2, "https://");
    let with_tls = ["--address", "https://demo", "--ca-file", "/nonexistent/ca.crt", "get", "k"];
    finish(command(&with_tls), b"").await.fails(2, "/nonexistent/ca.crt");
    let without = ["--address", "demo", "--ca-file", "/nonexistent/ca.crt", "get", "k"];
    finish(command(&without), b"").await.fails(2, "need https://");
}

#[tokio::test]
async fn flag_beats_environment_and_help_has_codes() {
    let node = node();
    let mut get = command(&["get", "k", "--address", &format!("http://{}", node.address)]);
    get.env("KVASIR_ADDRESS", "127.0.0.1:1");
    finish(get, b"").await.fails(3, "does not exist");
    let help = finish(command(&["--help"]), b"").await;
    for wanted in ["KVASIR_ADDRESS", "127.0.0.1:7070", "3  the key does not exist", "5  the node refused"] {
        assert!(help.text().contains(wanted), "no '{wanted}' in\n{}", help.text());
    }
}

#[tokio::test]
async fn events_are_printed_as_they_happen() {
    let node = node();
    for (format, expected) in [
        ("text", ["restarted", "joined demo-0 (member)"]),
        (
            "json",
            [
                r#"{"event":"restarted"}"#,
                r#"{"atMs":1700000000000,"event":"joined","name":"demo-0","origin":"000000000000feed","role":"member"}"#,
            ],
        ),
    ] {
        let mut command = command(&["events", "-o", format]);
        command.env("KVASIR_ADDRESS", node.address.to_string()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("kvctl starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in expected {
            assert_eq!(lines.next_line().await.unwrap().as_deref(), Some(line));
        }
        child.kill().await.unwrap();
    }
}
