//! Why a link ends or does not come up, and what is counted, logged and recorded then.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::warn;

use super::Transport;
use super::frame::{self, FrameError, Mode};
use crate::encryption::noise::NoiseError;
use crate::refusals::Reason;
use crate::replica::Violation;

/// Grace period for a link whose key was removed: the side that dials has this long to replace the link by one with the
/// primary key.
pub const RETIRE_AFTER: Duration = Duration::from_secs(10);
/// How many remotes the transport remembers the last refusal of.
const MAX_REFUSED: usize = 256;

/// Connections and frames on the peer port that were refused since the start, by reason.
#[derive(Debug, Default)]
pub struct PeerPortCounters {
    /// The other side is not a Kvasir node.
    pub garbage: AtomicU64,
    /// The peer speaks another version of the protocol.
    pub version: AtomicU64,
    /// A frame is over the limit.
    pub oversized: AtomicU64,
    /// A frame does not decode, or violates the protocol.
    pub malformed: AtomicU64,
    /// The peer is of another cluster, or is this node itself.
    pub stranger: AtomicU64,
    /// The peer's clock is too far from this node's.
    pub clock: AtomicU64,
    /// A handshake timed out or broke off.
    pub handshake: AtomicU64,
    /// Too many connections are open.
    pub crowded: AtomicU64,
    /// The peer does not encrypt, and this node does.
    pub plaintext: AtomicU64,
    /// The peer encrypts, and this node does not, or in another way.
    pub encrypted: AtomicU64,
    /// The peer has another cookie, or no key in common.
    pub key: AtomicU64,
    /// A message is not authentic: changed, repeated, or sent by a third party.
    pub forged: AtomicU64,
    /// A certificate is not accepted, or the peer does not speak TLS.
    pub tls: AtomicU64,
}

impl PeerPortCounters {
    /// Each reason with its count.
    pub fn read(&self) -> [(&'static str, u64); 13] {
        [
            ("garbage", &self.garbage),
            ("version", &self.version),
            ("oversized", &self.oversized),
            ("malformed", &self.malformed),
            ("stranger", &self.stranger),
            ("clock", &self.clock),
            ("handshake", &self.handshake),
            ("crowded", &self.crowded),
            ("plaintext", &self.plaintext),
            ("encrypted", &self.encrypted),
            ("key", &self.key),
            ("forged", &self.forged),
            ("tls", &self.tls),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    /// Counts a connection or frame that was refused because of what the peer sent.
    pub fn count(&self, error: &FrameError) {
        let counter = match error {
            FrameError::Garbage => &self.garbage,
            FrameError::Version { .. } => &self.version,
            FrameError::Oversized { .. } => &self.oversized,
            FrameError::Decode(_) => &self.malformed,
            FrameError::Mode { theirs: Mode::Plain, .. } => &self.plaintext,
            FrameError::Mode { .. } => &self.encrypted,
            FrameError::Noise(NoiseError::Key | NoiseError::Unanswered) => &self.key,
            FrameError::Noise(NoiseError::Forged) => &self.forged,
            FrameError::Tls(_) => &self.tls,
            FrameError::Io(_) | FrameError::Noise(NoiseError::Io(_)) => &self.handshake,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the peer belongs to the cluster `{theirs}`, this node to `{ours}`")]
    OtherCluster { theirs: String, ours: String },
    #[error(
        "the peer belongs to an earlier or later cluster of the name `{cluster}`: its clusterUid is `{theirs}`, this \
         node's `{ours}`. Delete what remains of the earlier one"
    )]
    OtherUid { cluster: String, theirs: String, ours: String },
    #[error("the connection leads to this node itself")]
    Myself,
    #[error(
        "the peer's clock is {behind_ms} ms behind, at most {limit_ms} ms (maxClockSkew): check the time service of both \
         machines"
    )]
    ClockBehind { behind_ms: u64, limit_ms: u64 },
    #[error("this node rejoined with a new origin during the handshake")]
    Outdated,
    #[error("the peer sent or accepted no data for {0:?}")]
    Silent(Duration),
    #[error("its key was removed {RETIRE_AFTER:?} ago, and no link with another key has replaced it")]
    Retired,
    #[error("the handshake took longer than {0:?}")]
    Slow(Duration),
}

impl LinkError {
    /// What keeps this node and the peer apart until one of them is changed. `None` for transient errors, and for what
    /// no node of any release or configuration sends.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Frame(error) => match error {
                FrameError::Version { .. } => Some(Reason::Version),
                FrameError::Mode { theirs: Mode::Plain, .. } => Some(Reason::Plaintext),
                FrameError::Mode { .. } => Some(Reason::Encrypted),
                FrameError::Noise(NoiseError::Key | NoiseError::Unanswered) => Some(Reason::Key),
                FrameError::Tls(error) => frame::is_of_tls(error).then_some(Reason::Certificate),
                FrameError::Garbage
                | FrameError::Noise(NoiseError::Forged | NoiseError::Io(_))
                | FrameError::Oversized { .. }
                | FrameError::Decode(_)
                | FrameError::Io(_) => None,
            },
            Self::Violation(Violation::ClockAhead { .. }) | Self::ClockBehind { .. } => Some(Reason::Clock),
            Self::OtherCluster { .. } | Self::OtherUid { .. } => Some(Reason::Cluster),
            // A message of an unknown kind comes from a later release.
            Self::Violation(Violation::Unknown) => Some(Reason::Version),
            Self::Violation(Violation::Malformed)
            | Self::Myself
            | Self::Outdated
            | Self::Silent(_)
            | Self::Retired
            | Self::Slow(_) => None,
        }
    }

    const fn is_clock(&self) -> bool {
        matches!(self, Self::Violation(Violation::ClockAhead { .. }) | Self::ClockBehind { .. })
    }
}

impl Transport {
    /// Counts a refusal, and logs it unless it repeats the remote's last one. Peers that cannot be talked to are logged
    /// by [`Refusals`](crate::refusals::Refusals).
    pub(super) fn refuse(&self, remote: SocketAddr, error: &LinkError) {
        let counters = &self.counters;
        let counter = match error {
            LinkError::Frame(error) => {
                counters.count(error);
                None
            }
            LinkError::Violation(Violation::Unknown | Violation::Malformed) => Some(&counters.malformed),
            LinkError::Violation(Violation::ClockAhead { .. }) | LinkError::ClockBehind { .. } => Some(&counters.clock),
            LinkError::OtherCluster { .. } | LinkError::OtherUid { .. } | LinkError::Myself => Some(&counters.stranger),
            LinkError::Silent(_) | LinkError::Slow(_) | LinkError::Retired | LinkError::Outdated => {
                Some(&counters.handshake)
            }
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if error.reason().is_some() {
            return;
        }
        let text = error.to_string();
        let mut logged = self.logged.lock();
        if logged.len() >= MAX_REFUSED {
            logged.clear();
        }
        if logged.insert(remote.ip(), text.clone()).as_ref() != Some(&text) {
            warn!(%remote, error = text, "refused a peer's connection");
        }
    }

    /// Records a node that is refused because of a clock, for the status.
    pub(super) fn note_skew(&self, name: &str, error: Option<&LinkError>) {
        let Some(error) = error.filter(|error| error.is_clock()) else { return };
        let mut skewed = self.skewed.lock();
        if skewed.len() >= MAX_REFUSED {
            skewed.clear();
        }
        skewed.insert(name.to_owned(), error.to_string());
    }
}
