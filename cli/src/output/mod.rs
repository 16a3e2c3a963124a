//! Prints answers, for people or for scripts. Knows nothing of the calls.

mod cluster;
mod encode;
mod text;

use crate::args::Format;
use kvasir_client::{Entry, Event, Value, Version};
use serde_json::{Value as Json, json};
use std::io::{self, IsTerminal as _, Write};

/// Rows that are aligned together and printed at a time.
pub(crate) const ROWS_AT_A_TIME: usize = 1000;

/// Standard output in one of the formats.
#[derive(Debug)]
pub(crate) struct Out {
    format: Format,
    stdout: io::StdoutLock<'static>,
}

impl Out {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, stdout: io::stdout().lock() }
    }

    pub(crate) fn put(&mut self, key: &str, version: Version) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "stored"),
            Format::Json => self.json(&json!({"key": key, "version": version.to_string()})),
        }
    }

    pub(crate) fn get(&mut self, key: &str, found: &Value) -> io::Result<()> {
        match self.format {
            Format::Text => {
                self.stdout.write_all(&found.value)?;
                if self.stdout.is_terminal() {
                    self.stdout.write_all(b"\n")?;
                }
                self.stdout.flush()
            }
            Format::Json => self.json(&encode::entry(key, &found.value, found.version, found.ttl)),
        }
    }

    pub(crate) fn not_found(&mut self, key: &str) -> io::Result<()> {
        self.json(&json!({"key": key, "found": false}))
    }

    pub(crate) fn exists(&mut self, key: &str, exists: bool) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "{exists}"),
            Format::Json => self.json(&json!({"key": key, "exists": exists})),
        }
    }

    pub(crate) fn touch(&mut self, key: &str) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "touched"),
            Format::Json => self.json(&json!({"key": key, "existed": true})),
        }
    }

    pub(crate) fn delete(&mut self, key: &str, existed: bool) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "{}", if existed { "deleted" } else { "was not there" }),
            Format::Json => self.json(&json!({"key": key, "existed": existed})),
        }
    }

    pub(crate) fn event(&mut self, event: &Event) -> io::Result<()> {
        let (what, key, value) = match event {
            Event::Put { key, value } => ("put", key.as_str(), Some(&value.value[..])),
            Event::Deleted { key, .. } => ("deleted", key.as_str(), None),
            Event::Expired { key, .. } => ("expired", key.as_str(), None),
            Event::Restarted => ("restarted", "", None),
            Event::Live => ("live", "", None),
        };
        match self.format {
            Format::Text => writeln!(self.stdout, "{}", text::event(what, key, value))?,
            Format::Json => self.json(&encode::event(what, event))?,
        }
        self.stdout.flush()
    }

    pub(crate) fn listing(&mut self, keys_only: bool) -> Listing<'_> {
        Listing { out: self, keys_only, headed: false }
    }

    fn json(&mut self, value: &Json) -> io::Result<()> {
        writeln!(self.stdout, "{value}")
    }

    fn table(&mut self, header: Option<&[&str]>, rows: Vec<Vec<String>>) -> io::Result<()> {
        let header = header.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        let rows: Vec<Vec<String>> = header.into_iter().chain(rows).collect();
        write!(self.stdout, "{}", text::align(&rows))
    }
}

/// A listing in progress.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    out: &'a mut Out,
    keys_only: bool,
    headed: bool,
}

impl Listing<'_> {
    pub(crate) fn rows(&mut self, entries: &[Entry]) -> io::Result<()> {
        match (self.out.format, self.keys_only) {
            (Format::Json, keys_only) => entries.iter().try_for_each(|e| {
                let line = if keys_only {
                    json!({"key": e.key, "version": e.version.to_string(), "ttlMs": e.ttl.map(encode::millis)})
                } else {
                    encode::entry(&e.key, &e.value, e.version, e.ttl)
                };
                self.out.json(&line)
            }),
            (Format::Text, true) => entries.iter().try_for_each(|e| writeln!(self.out.stdout, "{}", e.key)),
            (Format::Text, false) => {
                let header = (!self.headed).then_some(&["KEY", "BYTES", "TTL", "VALUE"][..]);
                self.headed = true;
                let row = |e: &Entry| {
                    let ttl = e.ttl.map_or("-".into(), text::duration);
                    vec![text::printable(&e.key), e.value.len().to_string(), ttl, text::preview(&e.value)]
                };
                self.out.table(header, entries.iter().map(row).collect())
            }
        }
    }
}
