//! The settings of the membership protocol.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    ops::RangeInclusive,
    time::Duration,
};

pub use kvasir_membership::Timing as SwimConfig;

use super::{
    ConfigError, SwimSettings,
    checks::{size_within, within},
    error::invalid,
};

const PERIOD: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const FORGET_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24 * 7);
const FANOUT: RangeInclusive<usize> = 1..=64;
const TRANSMISSIONS: RangeInclusive<usize> = 1..=255;

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
        // One period must have time for the probe and for the probes of the members that are asked to help.
        if config.probe_timeout * 2 > config.probe_period {
            return Err(invalid(
                "swim.probeTimeout",
                format!(
                    "{:?} leaves other members no time to probe: give at most half of swim.probePeriod, which is {:?}",
                    config.probe_timeout, config.probe_period
                ),
            ));
        }
        if config.suspicion < config.probe_period {
            return Err(invalid(
                "swim.suspicion",
                format!(
                    "{:?} gives a suspect no time to refute: give at least swim.probePeriod, which is {:?}",
                    config.suspicion, config.probe_period
                ),
            ));
        }
        Ok(config)
    }
}
