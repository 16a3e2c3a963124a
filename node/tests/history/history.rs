//! The records of a history: calls, observations of the nodes, and faults.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvasir_proto::v1;
use serde::{Deserialize, Serialize};

/// Microseconds since the run began.
pub(crate) type At = u64;

pub(crate) const fn micros(duration: Duration) -> At {
    duration.as_micros() as At
}

/// A write's identity; larger wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) hlc: u64,
    pub(crate) origin: u64,
}

impl From<v1::Version> for Version {
    fn from(v1::Version { hlc, origin }: v1::Version) -> Self {
        Self { hlc, origin }
    }
}

/// A live value, as a listing returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) version: Version,
}

impl From<v1::ListEntry> for Entry {
    fn from(entry: v1::ListEntry) -> Self {
        Self { key: entry.key, value: text(&entry.value), version: version(entry.version) }
    }
}

pub(crate) fn version(wire: Option<v1::Version>) -> Version {
    wire.expect("every write has a version").into()
}

pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// What a client called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    /// No two puts of a run have the same value.
    Put {
        value: String,
        ttl_ms: Option<u64>,
    },
    Get,
    Delete,
    Touch {
        ttl_ms: Option<u64>,
    },
    /// Keys that begin with the operation's key.
    List,
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Outcome of a put, and of a delete or touch of an existing key: how many other nodes hold it, and whether all
    /// seats do.
    Wrote {
        version: Version,
        peers: usize,
        all: bool,
    },
    /// Outcome of a delete or touch of a missing key: nothing was written.
    Nothing,
    Found {
        value: String,
        version: Version,
    },
    Missing,
    Listed(Vec<Entry>),
    /// The write may still have been applied, then or later.
    Failed {
        code: String,
        message: String,
        /// No answer came by the deadline.
        cut: bool,
    },
}

/// A call of a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) client: usize,
    pub(crate) node: usize,
    /// The calls of one session follow each other.
    pub(crate) session: Option<u64>,
    pub(crate) begin: At,
    pub(crate) end: At,
    /// The client's deadline for the call.
    pub(crate) deadline: At,
    pub(crate) key: String,
    pub(crate) call: Call,
    pub(crate) outcome: Outcome,
}

/// What a watch reported about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    Put(String),
    Deleted,
    Expired,
}

/// A line of the history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    Op(Op),
    /// At some moment between `begin` and `end` a node reported which life it is in: its process, and how often that
    /// process was reset.
    Life {
        node: usize,
        life: String,
        begin: At,
        end: At,
    },
    /// An event of one watch; their order is that of the records.
    Watched {
        stream: u64,
        node: usize,
        at: At,
        key: String,
        version: Version,
        what: What,
    },
    /// A fault.
    Fault {
        at: At,
        lasted: At,
        what: String,
    },
    /// Between `begin` and `end` a node may answer late.
    Down {
        node: usize,
        begin: At,
        end: At,
    },
    /// A node was terminated and left; records whether it reported that others hold everything it wrote under this
    /// origin.
    Left {
        node: usize,
        origin: u64,
        begin: At,
        end: At,
        covered: bool,
    },
    /// The machine was too busy to run the test's process.
    Stalled {
        begin: At,
        end: At,
    },
    /// With no call in flight, all nodes held these entries.
    Settled {
        begin: At,
        end: At,
        entries: Vec<Entry>,
    },
}

/// The records so far; clones share them.
#[derive(Clone)]
pub(crate) struct History {
    began: Instant,
    records: Arc<Mutex<Vec<Record>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), records: Arc::default() }
    }

    pub(crate) fn now(&self) -> At {
        micros(self.began.elapsed())
    }

    pub(crate) fn add(&self, record: Record) {
        self.lock().push(record);
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Record>> {
        self.records.lock().expect("no thread panics with the lock")
    }
}

/// Writes one record per line, as JSON.
pub(crate) fn save(records: &[Record], path: &Path) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    for record in records {
        serde_json::to_writer(&mut file, record).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.flush().unwrap();
}

pub(crate) fn load(path: &Path) -> Vec<Record> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    BufReader::new(file).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}
