//! Who shall hold a write before it is answered.

use crate::error::Error;
use crate::kv::Version;
use kvasir_proto::v1;
use std::time::Duration;

/// Who shall hold a write before it counts as done, and how long to wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Who.
    pub level: AckLevel,
    /// How long to wait; none: as long as the node allows, 10 s as a rule. Give the client a longer request timeout
    /// than this: an attempt that is given up is made again.
    pub timeout: Option<Duration>,
}

/// Who shall hold a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckLevel {
    /// This many nodes beside the one that takes it.
    Count(u32),
    /// A majority of the members that the cluster is meant to have.
    Majority,
    /// Every node that takes part, sidecars too.
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
        let timeout = self
            .timeout
            .map(prost_types::Duration::try_from)
            .transpose()
            .map_err(|_| Error::Refused("ack.timeout: longer than the wire can carry; leave it out".to_owned()))?;
        Ok(v1::Ack { asked: Some(asked), timeout })
    }
}

/// Whether what was asked for was met. A node of an older release, which knows nothing of it, has not met it.
pub(crate) fn check(ack: Option<Ack>, version: Option<Version>, held: Option<v1::Acked>) -> Result<(), Error> {
    let (Some(ack), Some(version)) = (ack, version) else { return Ok(()) };
    let held = held.unwrap_or_default();
    if held.met || ack.level == AckLevel::Count(0) {
        return Ok(());
    }
    let v1::Acked { peers, voters, lacking, majority, .. } = held;
    Err(Error::NotHeld { version, peers, voters, lacking, majority })
}
