//! How many nodes must hold a write before it is answered.

use crate::error::Error;
use crate::kv::Version;
use kvasir_proto::v1;
use std::time::Duration;

/// How many other nodes must hold a write before the call returns, and how long to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// How many nodes.
    pub level: AckLevel,
    /// How long to wait; `None`: as long as the node allows, usually 10 s. Give the client a longer request timeout than
    /// this, or the client abandons the attempt and tries again.
    pub timeout: Option<Duration>,
}

/// How many nodes must hold a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckLevel {
    /// This many nodes in addition to the node that takes the write.
    Count(u32),
    /// A majority of the members that the cluster is meant to have.
    Majority,
    /// Every node that takes part, including sidecars.
    All,
}

impl From<AckLevel> for Ack {
    fn from(level: AckLevel) -> Self {
        Self { level, timeout: None }
    }
}

impl Ack {
    pub(crate) fn wire(self) -> Result<v1::Ack, Error> {
        let asked = match self.level {
            AckLevel::Count(count) => v1::ack::Asked::Count(count),
            AckLevel::Majority => v1::ack::Asked::Level(v1::AckLevel::Majority.into()),
            AckLevel::All => v1::ack::Asked::Level(v1::AckLevel::All.into()),
        };
        let timeout =
            self.timeout.map(prost_types::Duration::try_from).transpose().map_err(|_| {
                Error::Refused("ack.timeout: longer than the protocol can carry; leave it out".to_owned())
            })?;
        Ok(v1::Ack { asked: Some(asked), timeout })
    }
}

/// Fails if too few nodes held the write in time. The answer of an older release, which ignores `ack`, counts as a
/// failure.
pub(crate) fn check(ack: Option<Ack>, version: Option<Version>, held: Option<v1::Acked>) -> Result<(), Error> {
    let (Some(ack), Some(version)) = (ack, version) else { return Ok(()) };
    let held = held.unwrap_or_default();
    if held.met || ack.level == AckLevel::Count(0) {
        return Ok(());
    }
    let v1::Acked { peers, voters, lacking, majority, .. } = held;
    Err(Error::NotHeld { version, peers, voters, lacking, majority })
}
