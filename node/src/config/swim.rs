//! How the nodes keep track of who lives: the intervals and sizes of the
//! membership protocol. They need not be the same on all nodes, but a node that
//! probes more seldom than it suspects is of little use to the others.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    ConfigError, SwimSettings,
    validate::{invalid, size_within, within},
};

const PERIOD: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const FORGET_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24 * 7);
const FANOUT: RangeInclusive<usize> = 1..=64;
const TRANSMISSIONS: RangeInclusive<usize> = 1..=255;

/// The intervals and sizes of the membership protocol.
///
/// A death is seen after the time until somebody's turn to probe the dead comes
/// (a few periods), one more period without an answer, and the suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwimConfig {
    /// How often this node probes one member.
    pub probe_period: Duration,
    /// How long it waits for the answer before it asks others to probe.
    pub probe_timeout: Duration,
    /// How long a member that didn't answer may take to say that it lives.
    pub suspicion: Duration,
    /// How often news go out, while there are any.
    pub gossip_period: Duration,
    /// How often a member is asked for all members it knows.
    pub exchange_period: Duration,
    /// How often some of those who failed are tried again.
    pub retry_period: Duration,
    /// How often addresses that no member has are tried.
    pub announce_period: Duration,
    /// How long the dead are remembered, so that old news cannot revive them.
    pub forget_after: Duration,
    /// How many members are asked to probe one that didn't answer.
    pub indirect_probes: NonZeroUsize,
    /// How many members a round of gossip goes to.
    pub gossip_fanout: NonZeroUsize,
    /// How many times one node passes on a piece of news.
    pub transmissions: NonZeroU8,
}

impl SwimConfig {
    /// For a local network: a death is seen within 3 s. News are passed on
    /// often enough for some hundred nodes.
    pub const LAN: Self = Self {
        probe_period: Duration::from_millis(200),
        probe_timeout: Duration::from_millis(80),
        suspicion: Duration::from_millis(1200),
        gossip_period: Duration::from_millis(100),
        exchange_period: Duration::from_secs(10),
        retry_period: Duration::from_secs(5),
        announce_period: Duration::from_secs(2),
        forget_after: Duration::from_hours(1),
        indirect_probes: NonZeroUsize::new(3).expect("3 is not zero"),
        gossip_fanout: NonZeroUsize::new(3).expect("3 is not zero"),
        transmissions: NonZeroU8::new(10).expect("10 is not zero"),
    };
}

impl SwimSettings {
    pub(super) fn validate(self) -> Result<SwimConfig, ConfigError> {
        let lan = SwimConfig::LAN;
        let count = |field, given, default: NonZeroUsize| {
            let count = size_within(field, given, default.get(), &FANOUT)?;
            Ok::<_, ConfigError>(NonZeroUsize::new(count).unwrap_or(default))
        };
        let transmissions = usize::from(lan.transmissions.get());
        let transmissions = size_within("swim.transmissions", self.transmissions, transmissions, &TRANSMISSIONS)?;
        let config = SwimConfig {
            probe_period: within("swim.probePeriod", self.probe_period, lan.probe_period, &PERIOD)?,
            probe_timeout: within("swim.probeTimeout", self.probe_timeout, lan.probe_timeout, &PERIOD)?,
            suspicion: within("swim.suspicion", self.suspicion, lan.suspicion, &PERIOD)?,
            gossip_period: within("swim.gossipPeriod", self.gossip_period, lan.gossip_period, &PERIOD)?,
            exchange_period: within("swim.exchangePeriod", self.exchange_period, lan.exchange_period, &PERIOD)?,
            retry_period: within("swim.retryPeriod", self.retry_period, lan.retry_period, &PERIOD)?,
            announce_period: within("swim.announcePeriod", self.announce_period, lan.announce_period, &PERIOD)?,
            forget_after: within("swim.forgetAfter", self.forget_after, lan.forget_after, &FORGET_AFTER)?,
            indirect_probes: count("swim.indirectProbes", self.indirect_probes, lan.indirect_probes)?,
            gossip_fanout: count("swim.gossipFanout", self.gossip_fanout, lan.gossip_fanout)?,
            transmissions: u8::try_from(transmissions).ok().and_then(NonZeroU8::new).unwrap_or(lan.transmissions),
        };
        // Within one period there must be time for the probe, and for those of others.
        if config.probe_timeout * 2 > config.probe_period {
            return Err(invalid(
                "swim.probeTimeout",
                format!(
                    "{:?} leaves others no time to probe too: give at most half of swim.probePeriod, which is {:?}",
                    config.probe_timeout, config.probe_period
                ),
            ));
        }
        if config.suspicion < config.probe_period {
            return Err(invalid(
                "swim.suspicion",
                format!(
                    "{:?} gives nobody time to say that it lives: give at least swim.probePeriod, which is {:?}",
                    config.suspicion, config.probe_period
                ),
            ));
        }
        Ok(config)
    }
}
