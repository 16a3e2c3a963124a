//! Bugs that tests must find. Each is a condition at the place that it breaks: the macro `planted!` with the bug's name,
//! which `mutations.toml` describes. The condition is the literal `false`, unless the crate is built with `--cfg
//! planted`: then the bug is there if the environment variable `KVASIR_PLANTED` holds its name. `scripts/mutations` runs
//! the tests with one after the other.

/// Whether the bug with this name is there.
#[cfg(not(planted))]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

/// Whether the bug with this name is there.
#[cfg(planted)]
macro_rules! planted {
    ($name:literal) => {
        $crate::planted::is($name)
    };
}

#[cfg(planted)]
pub(crate) use self::there::{is, order};

#[cfg(planted)]
mod there {
    use std::sync::LazyLock;

    use bytes::Bytes;

    use crate::store::{Record, Store};

    static NAME: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("KVASIR_PLANTED").ok());

    pub(crate) fn is(name: &str) -> bool {
        NAME.as_deref() == Some(name)
    }

    /// The records that a part of a delta goes through: in the order of keys, or with the bug in the order of writes.
    pub(crate) fn order<'a>(
        by_key: impl Iterator<Item = (&'a Bytes, &'a Record)> + 'a,
        store: &'a Store,
        after: Option<&Bytes>,
    ) -> Box<dyn Iterator<Item = (&'a Bytes, &'a Record)> + 'a> {
        if !planted!("delta-in-order-of-writes") {
            return Box::new(by_key);
        }
        let mut by_dot: Vec<_> = store.scan(None).collect();
        by_dot.sort_by_key(|(_, record)| record.dot);
        let from = by_dot.iter().position(|(key, _)| after == Some(*key)).map_or(0, |at| at + 1);
        Box::new(by_dot.into_iter().skip(from))
    }
}
