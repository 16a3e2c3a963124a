//! A version names one write, the same everywhere; and every value read was written.

use std::collections::HashMap;

use super::{Facts, Verdict, found};
use crate::history::{At, Call, Outcome, Record, Version, What};

/// The key and the value, or the delete, of each version.
#[derive(Default)]
struct Names<'a>(HashMap<Version, (&'a str, Option<&'a str>)>);

impl<'a> Names<'a> {
    fn see(&mut self, version: Version, key: &'a str, value: Option<&'a str>, at: At, verdict: &mut Verdict) {
        verdict.count("versions seen");
        let before = *self.0.entry(version).or_insert((key, value));
        if before != (key, value) {
            verdict.broken(format!("{version:?} is {before:?}, and at {at} it is {:?}", (key, value)));
        }
    }
}

pub(super) fn check(records: &[Record], facts: &Facts, verdict: &mut Verdict) {
    let mut puts: HashMap<&str, (&str, At)> = HashMap::new();
    for (key, writes) in &facts.writes {
        for write in writes {
            if let Some(value) = write.value {
                puts.insert(value, (key, write.op.begin));
            }
        }
    }
    let mut names = Names::default();
    let mut see = |version, key, value, at, verdict: &mut Verdict| names.see(version, key, value, at, verdict);
    let read = |key: &str, value: &str, at: At, verdict: &mut Verdict| match puts.get(value) {
        Some((put_under, begin)) if *put_under == key && *begin <= at => {}
        other => verdict.broken(format!("{value:?} was read under {key} at {at}, which was put: {other:?}")),
    };
    for record in records {
        match record {
            Record::Op(op) => {
                if let Outcome::Wrote { version, .. } = op.outcome {
                    match &op.call {
                        Call::Put { value, .. } => see(version, &op.key, Some(value), op.end, verdict),
                        Call::Delete => see(version, &op.key, None, op.end, verdict),
                        // A touch does not say which value's end it changed.
                        _ => {}
                    }
                }
                for (key, value, version) in found(op) {
                    see(version, key, Some(value), op.end, verdict);
                    read(key, value, op.end, verdict);
                }
            }
            Record::Watched { key, version, what, at, .. } => match what {
                What::Put(value) => {
                    see(*version, key, Some(value), *at, verdict);
                    read(key, value, *at, verdict);
                }
                What::Deleted => see(*version, key, None, *at, verdict),
                What::Expired => {}
            },
            Record::Settled { entries, end, .. } => {
                for entry in entries {
                    see(entry.version, &entry.key, Some(&entry.value), *end, verdict);
                    read(&entry.key, &entry.value, *end, verdict);
                }
            }
            _ => {}
        }
    }
}
