//! A real NATS server, which a test may start, stop and start again.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::harness::{PATIENCE, loopback};

/// Where `e2e/cluster/build.sh` puts it.
fn program() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let bin = from("BIN").unwrap_or_else(|| {
        let cache = from("KV_CACHE").unwrap_or_else(|| {
            let home = || from("HOME").expect("HOME is set").join(".cache");
            from("XDG_CACHE_HOME").unwrap_or_else(home).join("kvasir/cluster")
        });
        cache.join("bin")
    });
    let program = bin.join("nats-server");
    assert!(program.exists(), "{} is missing: run `make setup`", program.display());
    program
}

pub(crate) struct NatsServer {
    address: SocketAddr,
    /// The last arguments, without the address.
    pub(crate) flags: Vec<String>,
    folder: TempDir,
    child: Option<Child>,
}

impl NatsServer {
    /// A server that is not started yet.
    pub(crate) fn new(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self { address: loopback(), flags, folder: tempfile::tempdir().unwrap(), child: None }
    }

    pub(crate) fn started(flags: &[&str]) -> Self {
        let mut server = Self::new(flags);
        server.start();
        server
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = Command::new(program())
            .args(["-a", &self.address.ip().to_string(), "-p", &self.address.port().to_string()])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "the NATS server does not listen: {}", log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
