//! Starts nodes, queries them, and ends them whether the test passes or fails.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use kvasir_proto::v1;
use kvasir_proto::v1::cluster_client::ClusterClient;
use kvasir_proto::v1::kv_client::KvClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::memory_group::MemoryGroup;

/// Enough for a busy machine; a test that waits this long has failed. Tests wait for events with this bound, so no
/// result depends on the machine's speed.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Below the range from which the system takes ports for outgoing connections.
const PORTS: std::ops::Range<u16> = 21_000..31_000;

static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A port that was free a moment ago for TCP and UDP, and that no other test of this process uses.
fn free_port() -> u16 {
    let mut taken = TAKEN.lock().unwrap();
    for _ in 0..1000 {
        let port = rand::random_range(PORTS);
        if !taken.contains(&port)
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            taken.insert(port);
            return port;
        }
    }
    panic!("no port is free in {PORTS:?}");
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// A `kvasir-node` without the settings of this environment.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvasir-node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KVASIR_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A node's settings and, while it runs, its process.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) admin: SocketAddr,
    flags: BTreeMap<&'static str, String>,
    environment: BTreeMap<&'static str, String>,
    /// Shell commands to run before the shell execs the node.
    prelude: Option<String>,
    logs: TempDir,
    starts: u32,
    child: Option<Child>,
}

impl Node {
    /// A node that is not started yet.
    pub(crate) fn new(name: &str) -> Self {
        let flags = [
            ("cluster", "test"),
            ("sync-interval", "200ms"),
            ("join-timeout", "5s"),
            ("drain-timeout", "4s"),
            ("log-level", "info,kvasir_node=debug"),
            // Independent of the machine's memory limits.
            ("max-memory", "0"),
        ];
        Self {
            name: name.to_owned(),
            client: loopback(),
            peer: loopback(),
            admin: loopback(),
            flags: flags.map(|(flag, value)| (flag, value.to_owned())).into(),
            environment: BTreeMap::new(),
            prelude: None,
            logs: tempfile::tempdir().unwrap(),
            starts: 0,
            child: None,
        }
    }

    /// With another setting.
    pub(crate) fn with(mut self, flag: &'static str, value: impl Into<String>) -> Self {
        self.flags.insert(flag, value.into());
        self
    }

    /// Removes a setting that was given before.
    pub(crate) fn without(mut self, flag: &str) -> Self {
        assert!(self.flags.remove(flag).is_some(), "{flag} was not given");
        self
    }

    /// With an environment variable.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.insert(name, value.into());
        self
    }

    /// With other resource limits, as arguments of the shell's `ulimit`.
    pub(crate) fn ulimit(mut self, limit: &'static str) -> Self {
        self.prelude = Some(format!("ulimit {limit}"));
        self
    }

    /// In a cgroup, with the `maxMemory` that follows from its limit.
    pub(crate) fn inside(mut self, group: &MemoryGroup) -> Self {
        self.prelude = Some(format!("echo $$ > {}", group.path().join("cgroup.procs").display()));
        self.without("max-memory")
    }

    /// A node without peers, running and ready.
    pub(crate) async fn alone() -> Self {
        Self::new("alone").started().await
    }

    /// The node, running and ready.
    pub(crate) async fn started(mut self) -> Self {
        self.start();
        self.ready().await;
        self
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let log = File::create(self.log_path()).unwrap();
        let mut command = command();
        command
            .args(["--name", &self.name])
            .args(["--client-address", &self.client.to_string()])
            .args(["--peer-address", &self.peer.to_string()])
            .args(["--admin-address", &self.admin.to_string()])
            .envs(&self.environment);
        for (flag, value) in &self.flags {
            command.args([&format!("--{flag}"), value]);
        }
        if let Some(prelude) = &self.prelude {
            let node = std::mem::replace(&mut command, Command::new("sh"));
            command.args(["-c", &format!("{prelude} && exec \"$0\" \"$@\"")]);
            command.arg(node.get_program()).args(node.get_args()).stdin(Stdio::null());
            for (name, value) in node.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
        }
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn log_path(&self) -> PathBuf {
        self.logs.path().join(format!("{}.log", self.starts))
    }

    /// The log of the process that was started last.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("the node was started")
    }

    fn signal(&mut self, signal: &str) {
        let pid = self.child().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn terminate(&mut self) {
        self.signal("-TERM");
    }

    /// Stops the process until it is resumed: a peer that does not answer.
    pub(crate) fn freeze(&mut self) {
        self.signal("-STOP");
        // On a busy machine its threads may still run for a while.
        let began = Instant::now();
        while !self.stands_still() {
            assert!(began.elapsed() < PATIENCE, "{} does not stand still", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stands_still(&mut self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child().id())).unwrap();
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat"))).all(|stat| {
            // The state follows the name, which is in parentheses. A thread that has ended has no file.
            stat.map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        })
    }

    pub(crate) fn resume(&mut self) {
        self.signal("-CONT");
    }

    /// SIGKILL: the node does not leave.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the node was started");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Resident memory of the process, in bytes.
    pub(crate) fn memory(&mut self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child().id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has some");
        resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How many files the process may have open: the soft and the hard limit.
    pub(crate) fn open_files(&mut self) -> (u64, u64) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child().id())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("every process has some");
        let mut figures = line.split_whitespace().map(|figure| figure.parse().unwrap_or(u64::MAX));
        (figures.next().unwrap(), figures.next().unwrap())
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child().try_wait().unwrap().is_none()
    }

    /// Waits for the process to exit.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "{} does not end", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) async fn ready(&mut self) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child().try_wait().unwrap() {
                panic!("{} ended before it was ready: {status}", self.name);
            }
            match self.http("/readyz").await {
                Ok((200, _)) => return,
                other => assert!(began.elapsed() < PATIENCE, "{} is not ready: {other:?}", self.name),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A GET on the admin port.
    pub(crate) async fn http(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
        Ok((code, body.to_owned()))
    }

    /// A page of the admin port. A process that was started a moment ago may not listen yet.
    async fn page(&self, path: &str) -> String {
        let (code, page) = eventually(&format!("{} answers {path}", self.name), async || self.http(path).await).await;
        assert_eq!(code, 200, "{page}");
        page
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.page("/status").await).unwrap()
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics(self.page("/metrics").await)
    }

    pub(crate) fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.client)).unwrap().connect_lazy()
    }

    pub(crate) fn kv(&self) -> Kv {
        Kv(KvClient::new(self.channel()).max_decoding_message_size(usize::MAX))
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for start in 1..=self.starts {
                let log = std::fs::read_to_string(self.logs.path().join(format!("{start}.log"))).unwrap_or_default();
                eprintln!("---- {} (start {start})\n{log}", self.name);
            }
        }
    }
}

/// Nodes that know each other's addresses, none started.
pub(crate) fn nodes(count: usize) -> Vec<Node> {
    let nodes: Vec<_> = (0..count).map(|n| Node::new(&format!("n{n}"))).collect();
    let hosts = nodes.iter().map(|n| n.peer.to_string()).collect::<Vec<_>>().join(",");
    nodes.into_iter().map(|node| node.with("discovery-static-hosts", hosts.clone())).collect()
}

/// Nodes that are linked to each other and ready.
pub(crate) async fn cluster(count: usize) -> Vec<Node> {
    let mut nodes = nodes(count);
    nodes.iter_mut().for_each(Node::start);
    for node in &mut nodes {
        node.ready().await;
    }
    meshed(&nodes).await;
    nodes
}

/// Waits until each node is linked to all the others.
pub(crate) async fn meshed(nodes: &[Node]) {
    eventually("all nodes are linked", async || {
        for node in nodes {
            let status = node.status().await;
            let linked = status["peers"].as_array().unwrap().iter().filter(|p| p["linked"] == true).count();
            if linked != nodes.len() - 1 {
                return Err(format!("{} has {linked} links: {status}", node.name));
            }
        }
        Ok(())
    })
    .await;
}

/// Retries until the answer is `Ok`.
pub(crate) async fn eventually<T, E: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < PATIENCE, "never happened: {what}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The raw gRPC client with shorthands for its calls.
#[derive(Clone)]
pub(crate) struct Kv(pub(crate) KvClient<Channel>);

impl Kv {
    pub(crate) async fn put(&mut self, key: &str, value: &str) -> Result<v1::Version, Status> {
        self.put_for(key, value, None).await
    }

    pub(crate) async fn put_for(
        &mut self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<v1::Version, Status> {
        let ttl = ttl.map(|ttl| prost_types::Duration::try_from(ttl).unwrap());
        let request =
            v1::PutRequest { key: key.to_owned(), value: value.to_owned().into(), ttl, ..v1::PutRequest::default() };
        Ok(self.0.put(request).await?.into_inner().version.expect("a put has a version"))
    }

    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<String>, Status> {
        match self.0.get(v1::GetRequest { key: key.to_owned(), ..v1::GetRequest::default() }).await {
            Ok(found) => Ok(Some(String::from_utf8(found.into_inner().value.to_vec()).unwrap())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    pub(crate) async fn exists(&mut self, key: &str) -> Result<bool, Status> {
        Ok(self
            .0
            .exists(v1::ExistsRequest { key: key.to_owned(), ..v1::ExistsRequest::default() })
            .await?
            .into_inner()
            .exists)
    }

    pub(crate) async fn delete(&mut self, key: &str) -> Result<bool, Status> {
        Ok(self
            .0
            .delete(v1::DeleteRequest { key: key.to_owned(), ..v1::DeleteRequest::default() })
            .await?
            .into_inner()
            .existed)
    }

    /// The messages of a listing.
    pub(crate) async fn list(&mut self, request: v1::ListRequest) -> Result<Vec<v1::ListResponse>, Status> {
        let mut stream = self.0.list(request).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// Everything the node holds.
    pub(crate) async fn all(&mut self) -> Result<BTreeMap<String, String>, Status> {
        let entries = self.list(v1::ListRequest::default()).await?.into_iter().flat_map(|m| m.entries);
        Ok(entries.map(|e| (e.key, String::from_utf8(e.value.to_vec()).unwrap())).collect())
    }
}

/// A page of metrics.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The value of a series, written as on the page.
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

/// Waits until the node holds every key of the acknowledged writes.
pub(crate) async fn holds_all(node: &Node, acknowledged: &[String]) {
    eventually("every acknowledged write is there", async || {
        let held = node.kv().all().await.map_err(|status| status.to_string())?;
        let lost: Vec<_> = acknowledged.iter().filter(|key| !held.contains_key(*key)).collect();
        if lost.is_empty() { Ok(()) } else { Err(format!("{} lacks {lost:?}", node.name)) }
    })
    .await;
}
