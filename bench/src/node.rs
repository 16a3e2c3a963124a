//! A `kvasir-node` process, and what can be measured from outside.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kvasir_proto::v1::BatchPutRequest;
use kvasir_proto::v1::PutRequest;
use kvasir_proto::v1::kv_client::KvClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;

/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(2);
/// How many puts one call has when the map is filled: the API's limit.
pub(crate) const BATCH: usize = 1_000;
/// How many calls at a time fill the map.
const FILLERS: u64 = 4;

/// A running node, which is killed when this is dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    child: Child,
}

/// How a node is started.
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) address: IpAddr,
    /// The network namespace to run in. `None`: this process's.
    pub(crate) namespace: Option<&'a str>,
    pub(crate) flags: Vec<String>,
}

impl Node {
    pub(crate) fn start(start: Start) -> anyhow::Result<Self> {
        let mut command = match start.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(start.program);
                command
            }
            None => Command::new(start.program),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVASIR_") {
                command.env_remove(name);
            }
        }
        command.env("MIMALLOC_PURGE_DELAY", "10"); // as the image has it
        command.args(["--name", start.name, "--cluster", "bench", "--log-level", "warn"]);
        for (flag, port) in [("--client-address", 7070), ("--peer-address", 7071), ("--admin-address", 7072)] {
            command.args([flag, &SocketAddr::new(start.address, port).to_string()]);
        }
        let child = command
            .args(start.flags)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", start.program.display()))?;
        Ok(Self { name: start.name.to_owned(), address: start.address, child })
    }

    /// Waits until the node is ready. Returns how long that took.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("{} ended: {status}", self.name);
            }
            if matches!(self.http("/readyz").await, Ok((200, _))) {
                return Ok(began.elapsed());
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "{} does not become ready", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn http(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect((self.address, 7072)).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok((head.split(' ').nth(1).context("no HTTP code")?.parse()?, body.to_owned()))
    }

    pub(crate) async fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.http("/status").await?.1)?)
    }

    /// The value of a series, which is named as on the metrics page.
    pub(crate) async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let page = self.http("/metrics").await?.1;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("{} has no metric {series}", self.name))?.parse()?)
    }

    /// Waits for a status. Returns how long that took.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let last = self.status().await;
            if last.as_ref().is_ok_and(&is) {
                return Ok(began.elapsed());
            }
            anyhow::ensure!(began.elapsed() < PATIENCE, "{}: never {what}: {last:?}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Writes the entries with the numbers from `first` on.
    pub(crate) async fn fill(
        &self,
        first: u64,
        count: u64,
        entry: impl Fn(u64) -> (String, Vec<u8>) + Clone + Send + Sync + 'static,
    ) -> anyhow::Result<()> {
        let end = first + count;
        let mut fillers = tokio::task::JoinSet::new();
        for filler in 0..FILLERS {
            let mut kv = self.kv().await?;
            let entry = entry.clone();
            fillers.spawn(async move {
                let mut from = first + filler * BATCH as u64;
                while from < end {
                    let put = |n| {
                        let (key, value) = entry(n);
                        PutRequest { key, value: value.into(), ..PutRequest::default() }
                    };
                    let puts = (from..end.min(from + BATCH as u64)).map(put).collect();
                    let answer =
                        kv.batch_put(BatchPutRequest { puts, ..BatchPutRequest::default() }).await?.into_inner();
                    anyhow::ensure!(answer.failure.is_none(), "a put failed: {:?}", answer.failure);
                    from += FILLERS * BATCH as u64;
                }
                Ok(())
            });
        }
        while let Some(done) = fillers.join_next().await {
            done??;
        }
        Ok(())
    }

    pub(crate) async fn kv(&self) -> anyhow::Result<KvClient<Channel>> {
        let channel =
            Channel::from_shared(format!("http://{}", SocketAddr::new(self.address, 7070)))?.connect().await?;
        Ok(KvClient::new(channel))
    }

    /// The resident memory of the process, bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        self.proc_status("VmRSS:")
    }

    /// The peak of its resident memory, bytes.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        self.proc_status("VmHWM:")
    }

    fn proc_status(&self, field: &str) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
        Ok(kib.context("no such field in /proc/PID/status")?.parse::<u64>()? * 1024)
    }

    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The fields follow the name, which is in parentheses and may contain anything.
        let fields: Vec<&str> = text.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10)) // USER_HZ is 100 on every Linux
    }

    /// Sends SIGKILL, so the node does not leave.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
