//! The node processes.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kvasir_proto::v1;
use kvasir_proto::v1::cluster_client::ClusterClient;
use tonic::transport::{Channel, Endpoint};

use crate::namespaces;

/// How long a node may be unreachable before it is evicted.
pub(crate) const EVICT_AFTER: Duration = Duration::from_secs(3);
const DRAIN: Duration = Duration::from_secs(4);
/// Far longer than [`DRAIN`] and the exit after it take.
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// A node of the cluster, and its process while it runs.
pub(crate) struct Node {
    number: usize,
    log: PathBuf,
    hosts: String,
    child: Option<Child>,
}

impl Node {
    /// A node that is not started yet and logs into this directory.
    pub(crate) fn new(number: usize, nodes: usize, logs: &Path) -> Self {
        let hosts = (0..nodes).map(|n| format!("{}:7071", namespaces::address(n))).collect::<Vec<_>>().join(",");
        Self { number, log: logs.join(format!("n{number}.log")), hosts, child: None }
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "n{} runs already", self.number);
        let (name, address) = (namespaces::name(self.number), namespaces::address(self.number));
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("ip");
        // ip execs the node: the process keeps its pid.
        command.args(["netns", "exec", &name, env!("CARGO_BIN_EXE_kvasir-node"), "--name", &name]);
        for (flag, value) in [
            ("cluster", "history"),
            ("client-address", &format!("{address}:7070")),
            ("peer-address", &format!("{address}:7071")),
            ("admin-address", &format!("{address}:7072")),
            ("discovery-static-hosts", &self.hosts),
            ("voters", &self.hosts.split(',').count().to_string()),
            ("evict-after", &format!("{}ms", EVICT_AFTER.as_millis())),
            ("drain-timeout", &format!("{}ms", DRAIN.as_millis())),
            ("sync-interval", "200ms"),
            // A node that restarts alone waits for the others, however long they take.
            ("serve-alone", "false"),
            ("log-level", "info,kvasir_node=debug"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVASIR_") {
                command.env_remove(name);
            }
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("the node was started").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success(), "kill {signal} {pid}");
    }

    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// SIGKILL: the node does not leave.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the node was started");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Terminates the node, and returns its exit status and its log from then on; none if it does not exit.
    pub(crate) async fn leave(&mut self) -> Option<(ExitStatus, String)> {
        let before = std::fs::metadata(&self.log).unwrap().len() as usize;
        self.signal("-TERM");
        let began = Instant::now();
        loop {
            let child = self.child.as_mut().expect("the node was started");
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                let log = std::fs::read(&self.log).unwrap();
                return Some((status, String::from_utf8_lossy(&log[before..]).into_owned()));
            }
            if began.elapsed() > ENDS_WITHIN {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A new connection to a node, made with the first call.
pub(crate) fn channel(node: usize) -> Channel {
    Endpoint::from_shared(format!("http://{}:7070", namespaces::address(node)))
        .expect("an address")
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .connect_lazy()
}

/// The node's status; none if it does not answer in time.
pub(crate) async fn status(cluster: &mut ClusterClient<Channel>, within: Duration) -> Option<v1::StatusResponse> {
    let answer = tokio::time::timeout(within, cluster.status(v1::StatusRequest {})).await;
    Some(answer.ok()?.ok()?.into_inner())
}
