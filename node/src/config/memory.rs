//! The default of `maxMemory`: a share of the memory limit of the process.

use std::fmt;

use super::{Config, ConfigError, error::invalid, text::Quantity};
use crate::memory::{LEAST_LIMIT, LEAST_SHARE, Limit, share};

/// What `maxMemory` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxMemoryFrom {
    /// The setting, where 0 means no limit.
    Setting,
    /// The memory limit of the process.
    Limit,
    /// There is neither: entries have no limit.
    Nothing,
}

impl MaxMemoryFrom {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Setting, Self::Limit, Self::Nothing];

    /// The name in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Limit => "limit",
            Self::Nothing => "none",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", Quantity(self.bytes), self.file.display())
    }
}

impl Config {
    /// This configuration in a process with this memory limit: without `maxMemory`, entries get a share of the limit. A limit
    /// that leaves nothing for entries is refused, because the kernel would kill the process repeatedly.
    pub fn within(mut self, limit: Option<Limit>) -> Result<Self, ConfigError> {
        if let (MaxMemoryFrom::Nothing, Some(limit)) = (self.max_memory_from, &limit) {
            let share = share(limit.bytes);
            if share < LEAST_SHARE {
                return Err(invalid(
                    "maxMemory",
                    format!(
                        "the memory limit of the process is {limit}, and a node needs at least {}: raise the limit",
                        Quantity(LEAST_LIMIT)
                    ),
                ));
            }
            (self.max_memory, self.max_memory_from) = (Some(share), MaxMemoryFrom::Limit);
        }
        self.memory_limit = limit;
        Ok(self)
    }

    /// Why the kernel may kill the process for its memory, and what to do; `None` if entries are bounded and leave enough for
    /// the rest.
    pub fn memory_concern(&self) -> Option<String> {
        let Some(max) = self.max_memory else {
            return Some(
                "nothing limits the memory of entries, so a machine or container that runs out of memory kills this node \
                 with all its data: set a memory limit of the container (resources.limits.memory, MemoryMax), or maxMemory"
                    .to_owned(),
            );
        };
        let limit = self.memory_limit.as_ref()?;
        let fits = share(limit.bytes);
        (max > fits).then(|| {
            format!(
                "maxMemory is {}, but only {} fit into the memory limit of the process, which is {limit}: with more, \
                 the kernel may kill this node with all its data. Lower maxMemory or raise the limit",
                Quantity(max),
                Quantity(fits),
            )
        })
    }

    /// The remark of `--print-config` on a `maxMemory` that is not set.
    pub(super) fn max_memory_remark(&self) -> Option<String> {
        match (self.max_memory_from, &self.memory_limit) {
            (MaxMemoryFrom::Setting, _) => None,
            (MaxMemoryFrom::Limit, Some(limit)) => {
                Some(format!("maxMemory is not set: it is a share of the memory limit of the process, {limit}"))
            }
            _ => Some("maxMemory is not set, and no memory limit of the process is known".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn within(yaml: &str, limit: Option<u64>) -> Result<Config, ConfigError> {
        let settings = Settings::from_yaml("node.yaml".as_ref(), yaml).unwrap();
        let limit = limit.map(|bytes| Limit { bytes, file: "/sys/fs/cgroup/memory.max".into() });
        Settings { name: Some("n".to_owned()), ..settings }.validate().unwrap().within(limit)
    }

    #[test]
    fn max_memory_is_a_share_of_the_limit() {
        let config = within("", Some(96 << 20)).unwrap();
        assert_eq!((config.max_memory, config.max_memory_from), (Some(share(96 << 20)), MaxMemoryFrom::Limit));
        assert_eq!(config.memory_concern(), None);
        let printed = config.to_yaml();
        let remark = "# maxMemory is not set: it is a share of the memory limit of the process, 96Mi (/sys/fs/cgroup/memory.max)\n";
        assert!(printed.starts_with(remark) && printed.contains("\nmaxMemory: "), "{printed}");
    }

    #[test]
    fn max_memory_stays_as_set() {
        let config = within("maxMemory: 10Mi", Some(96 << 20)).unwrap();
        assert_eq!((config.max_memory, config.max_memory_from), (Some(10 << 20), MaxMemoryFrom::Setting));
        assert_eq!(config.memory_concern(), None);
        let small = within("maxMemory: 1Mi", Some(LEAST_LIMIT - (1 << 20))).unwrap();
        assert_eq!(small.max_memory, Some(1 << 20), "a setting is not changed");
        assert!(small.memory_concern().is_some());
    }

    #[test]
    fn max_memory_that_does_not_fit_is_a_concern() {
        let fits = share(96 << 20);
        let concern = |max: u64| within(&format!("maxMemory: {max}"), Some(96 << 20)).unwrap().memory_concern();
        assert_eq!(concern(fits), None);
        let concern = concern(fits + 1).unwrap();
        assert!(
            concern.contains("96Mi (/sys/fs/cgroup/memory.max)") && concern.contains("Lower maxMemory"),
            "{concern}"
        );
    }

    #[test]
    fn max_memory_without_any_limit_is_a_concern() {
        for (yaml, limit, from) in [
            ("", None, MaxMemoryFrom::Nothing),
            ("maxMemory: 0", None, MaxMemoryFrom::Setting),
            ("maxMemory: 0", Some(96 << 20), MaxMemoryFrom::Setting),
        ] {
            let config = within(yaml, limit).unwrap();
            assert_eq!((config.max_memory, config.max_memory_from), (None, from), "{yaml}");
            assert!(config.memory_concern().unwrap().contains("or maxMemory"), "{yaml}");
        }
        assert_eq!(within("maxMemory: 1Gi", None).unwrap().memory_concern(), None);
    }

    #[test]
    fn max_memory_from_too_small_a_limit_is_refused() {
        let message = within("", Some(LEAST_LIMIT - (1 << 20))).unwrap_err().to_string();
        for part in ["maxMemory: ", "(/sys/fs/cgroup/memory.max)", "at least", "raise the limit"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(within("", Some(LEAST_LIMIT)).unwrap().max_memory >= Some(LEAST_SHARE));
    }
}
