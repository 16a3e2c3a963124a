//! What is printed, for people and for scripts. Knows nothing of how it was got.

use crate::args::Format;
use crate::duration;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvasir_client::{
    ClusterEvent, Entry, Event, Leader, Member, SkewedPeer, Status, UnjoinablePeer, Value, Version, WhoAmI,
};
use serde_json::{Value as Json, json};
use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A listing is printed in blocks of at most this many rows, aligned within each.
pub(crate) const ROWS_AT_A_TIME: usize = 1000;
/// A value longer than this is cut in a listing.
const PREVIEW_CHARS: usize = 60;

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
            Format::Json => self.json(&entry(key, &found.value, found.version, found.ttl)),
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

    pub(crate) fn event(&mut self, event: &Event) -> io::Result<()> {
        let (what, key, version) = match event {
            Event::Put { key, value } => ("put", key.as_str(), Some(value.version)),
            Event::Deleted { key, version } => ("deleted", key.as_str(), Some(*version)),
            Event::Expired { key, version } => ("expired", key.as_str(), Some(*version)),
            Event::Restarted => ("restarted", "", None),
            Event::Live => ("live", "", None),
        };
        match (self.format, event) {
            (Format::Json, _) => {
                let mut line = json!({"event": what});
                if let Some(version) = version {
                    line["key"] = key.into();
                    line["version"] = version.to_string().into();
                }
                if let Event::Put { value, .. } = event {
                    line["value"] = BASE64.encode(&value.value).into();
                }
                self.json(&line)?;
            }
            (Format::Text, Event::Put { value, .. }) => {
                writeln!(self.stdout, "{}", event_row(what, key, Some(&value.value)))?;
            }
            (Format::Text, _) => writeln!(self.stdout, "{}", event_row(what, key, None))?,
        }
        self.stdout.flush()
    }

    pub(crate) fn cluster_event(&mut self, event: &ClusterEvent) -> io::Result<()> {
        let (what, node) = match event {
            ClusterEvent::Restarted => ("restarted", None),
            ClusterEvent::Joined(node) => ("joined", Some(node)),
            ClusterEvent::Left(node) => ("left", Some(node)),
            ClusterEvent::Failed(node) => ("failed", Some(node)),
            ClusterEvent::Evicted(node) => ("evicted", Some(node)),
            _ => return Ok(()),
        };
        match (self.format, node) {
            (Format::Text, None) => writeln!(self.stdout, "{what}")?,
            (Format::Text, Some(node)) => writeln!(self.stdout, "{what} {} ({})", printable(&node.name), node.role)?,
            (Format::Json, None) => self.json(&json!({"event": what}))?,
            (Format::Json, Some(node)) => {
                let at = node.at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(millis);
                let role = node.role.to_string();
                self.json(&json!({"event": what, "name": node.name, "origin": node.origin, "role": role, "atMs": at}))?;
            }
        }
        self.stdout.flush()
    }

    pub(crate) fn delete(&mut self, key: &str, existed: bool) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "{}", if existed { "deleted" } else { "was not there" }),
            Format::Json => self.json(&json!({"key": key, "existed": existed})),
        }
    }

    pub(crate) fn listing(&mut self, keys_only: bool) -> Listing<'_> {
        Listing { out: self, keys_only, headed: false }
    }

    pub(crate) fn members(&mut self, members: &[Member]) -> io::Result<()> {
        match self.format {
            Format::Text => {
                let header = ["NAME", "ROLE", "STATE", "LINKED", "ADDRESS", "VERSION", "AGE", "FOUND BY", "ORIGIN"];
                let rows = members.iter().map(member_row).collect();
                self.table(Some(&header), rows)
            }
            Format::Json => self.json(&json!({"members": members.iter().map(member).collect::<Vec<_>>()})),
        }
    }

    pub(crate) fn status(&mut self, status: &Status) -> io::Result<()> {
        match self.format {
            Format::Text => {
                let mut rows = vec![
                    field("name", &status.member.name),
                    field("role", &status.member.role),
                    field("phase", &status.phase),
                    field("version", &status.member.version),
                    field("age", &age(&status.member)),
                    field("founded", &founded(status)),
                    field("keys", &status.keys),
                    field("tombstones", &status.tombstones),
                    field("memory", &format!("{} bytes", status.memory_bytes)),
                    field("max memory", &status.max_memory_bytes.map_or("none".into(), |max| format!("{max} bytes"))),
                    field("lag", &status.lag.map_or("no peer".into(), duration::show)),
                    field("fingerprint", &status.fingerprint),
                    field("seats", &seats(status)),
                    field("deletes forgotten", &forgotten(status)),
                    field(
                        "overfull",
                        &if status.overfull {
                            "yes: it lacks writes of peers, for want of memory (maxMemory)"
                        } else {
                            "no"
                        },
                    ),
                    field("returns", &status.returns),
                ];
                for SkewedPeer { name, reason } in &status.skewed {
                    rows.push(field(&format!("refused {}", printable(name)), &printable(reason)));
                }
                for UnjoinablePeer { address, name, why, .. } in &status.unjoinable {
                    let whom = name.as_ref().map_or_else(|| address.clone(), |name| format!("{name} ({address})"));
                    rows.push(field(&format!("cannot join {}", printable(&whom)), &printable(why)));
                }
                for line in &status.waits_for {
                    rows.push(field("waiting", &printable(line)));
                }
                for discovery in &status.discovery {
                    let error = discovery.error.as_ref().map_or(String::new(), |error| format!(", failing: {error}"));
                    let members = discovery.members.join(", ");
                    rows.push(field(
                        &format!("discovery {}", discovery.provider),
                        &format!("{} found ({members}){error}", discovery.found),
                    ));
                }
                self.table(None, rows)
            }
            Format::Json => self.json(&json!({
                "member": member(&status.member),
                "phase": status.phase.to_string(),
                "foundedAtMs": status.founded_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(millis),
                "keys": status.keys,
                "tombstones": status.tombstones,
                "memoryBytes": status.memory_bytes,
                "maxMemoryBytes": status.max_memory_bytes,
                "fingerprint": status.fingerprint,
                "lagMs": status.lag.map(millis),
                "discovery": status.discovery.iter().map(|discovery| json!({
                    "provider": discovery.provider,
                    "found": discovery.found,
                    "error": discovery.error,
                    "failures": discovery.failures,
                    "members": discovery.members,
                })).collect::<Vec<_>>(),
                "seats": status.seats,
                "collectedAgeMs": status.collected_age.map(millis),
                "overfull": status.overfull,
                "returns": status.returns,
                "skewed": status.skewed.iter().map(|SkewedPeer { name, reason }| json!({
                    "name": name,
                    "reason": reason,
                })).collect::<Vec<_>>(),
                "unjoinable": status.unjoinable.iter().map(|UnjoinablePeer { address, name, reason, why }| json!({
                    "address": address,
                    "name": name,
                    "reason": reason,
                    "why": why,
                })).collect::<Vec<_>>(),
                "waitsFor": status.waits_for,
            })),
        }
    }

    pub(crate) fn who_am_i(&mut self, who: &WhoAmI) -> io::Result<()> {
        match self.format {
            Format::Text => {
                let mut rows = vec![
                    field("name", &who.member.name),
                    field("role", &who.member.role),
                    field("cluster", &who.cluster),
                    field("phase", &who.phase),
                    field("address", &who.member.peer_address),
                    field("version", &who.member.version),
                    field("age", &age(&who.member)),
                    field("origin", &who.member.origin),
                ];
                if !who.cluster_uid.is_empty() {
                    rows.insert(3, field("cluster uid", &who.cluster_uid));
                }
                self.table(None, rows)
            }
            Format::Json => self.json(&json!({
                "member": member(&who.member),
                "cluster": who.cluster,
                "clusterUid": who.cluster_uid,
                "phase": who.phase.to_string(),
            })),
        }
    }

    /// The name alone as text: it is what a script wants, and a person too.
    pub(crate) fn leader(&mut self, leader: &Leader) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "{}", leader.member.name),
            Format::Json => self.json(&json!({"leader": member(&leader.member), "isMe": leader.is_me})),
        }
    }

    fn json(&mut self, value: &Json) -> io::Result<()> {
        writeln!(self.stdout, "{value}")
    }

    /// Columns two spaces apart, the last one left as it is.
    fn table(&mut self, header: Option<&[&str]>, rows: Vec<Vec<String>>) -> io::Result<()> {
        let header = header.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        let rows: Vec<Vec<String>> = header.into_iter().chain(rows).collect();
        write!(self.stdout, "{}", align(&rows))
    }
}

/// A listing under way.
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
                    json!({"key": e.key, "version": e.version.to_string(), "ttlMs": e.ttl.map(millis)})
                } else {
                    entry(&e.key, &e.value, e.version, e.ttl)
                };
                self.out.json(&line)
            }),
            (Format::Text, true) => entries.iter().try_for_each(|e| writeln!(self.out.stdout, "{}", e.key)),
            (Format::Text, false) => {
                let header = (!self.headed).then_some(&["KEY", "BYTES", "TTL", "VALUE"][..]);
                self.headed = true;
                let row = |e: &Entry| {
                    let ttl = e.ttl.map_or("-".into(), duration::show);
                    vec![printable(&e.key), e.value.len().to_string(), ttl, preview(&e.value)]
                };
                self.out.table(header, entries.iter().map(row).collect())
            }
        }
    }
}

/// A value as a script can take it: always in base64, and as text where it is text.
fn entry(key: &str, value: &[u8], version: Version, ttl: Option<Duration>) -> Json {
    let mut line = json!({
        "key": key,
        "value": BASE64.encode(value),
        "version": version.to_string(),
        "ttlMs": ttl.map(millis),
    });
    if let Ok(text) = std::str::from_utf8(value) {
        line["text"] = text.into();
    }
    line
}

fn member(member: &Member) -> Json {
    let started = member.started_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(millis);
    json!({
        "name": member.name,
        "origin": member.origin,
        "role": member.role.to_string(),
        "address": member.peer_address,
        "state": member.state.to_string(),
        "startedAtMs": started,
        "version": member.version,
        "linked": member.linked,
        "foundBy": member.found_by,
    })
}

fn member_row(member: &Member) -> Vec<String> {
    vec![
        member.name.clone(),
        member.role.to_string(),
        member.state.to_string(),
        if member.linked { "yes".into() } else { "no".into() },
        member.peer_address.clone(),
        member.version.clone(),
        age(member),
        member.found_by.clone().unwrap_or_else(|| "-".into()),
        member.origin.clone(),
    ]
}

/// The states that somebody is in.
fn seats(status: &Status) -> String {
    let taken = status.seats.iter().filter(|(_, count)| **count > 0);
    taken.map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

fn forgotten(status: &Status) -> String {
    status.collected_age.map_or("none".into(), |age| format!("up to {} ago", duration::show(age)))
}

fn founded(status: &Status) -> String {
    status.founded_at.map_or("not yet".into(), |at| format!("{} ago", since(at)))
}

fn age(member: &Member) -> String {
    member.started_at.map_or("-".into(), since)
}

fn since(at: SystemTime) -> String {
    // A clock that runs behind the other node's makes it newborn, not an error.
    duration::show(SystemTime::now().duration_since(at).unwrap_or(Duration::ZERO))
}

fn field(name: &str, value: &impl ToString) -> Vec<String> {
    vec![format!("{name}:"), value.to_string()]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn align(rows: &[Vec<String>]) -> String {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let last = row.len().saturating_sub(1);
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column < last {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count() + 2));
            }
        }
        text.push('\n');
    }
    text
}

/// One line, whatever key and value hold; the value as in a listing.
fn event_row(what: &str, key: &str, value: Option<&[u8]>) -> String {
    let words = [what.to_owned(), printable(key), value.map(preview).unwrap_or_default()];
    words.join(" ").trim_end().to_owned()
}

/// Text that cannot disturb a terminal or a table.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn preview(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.chars().count() <= PREVIEW_CHARS => printable(text),
        Ok(text) => printable(&text.chars().take(PREVIEW_CHARS - 3).collect::<String>()) + "...",
        Err(_) => "(binary)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{align, entry, event_row, preview};
    use kvasir_client::Version;
    use std::time::Duration;

    const VERSION: Version = Version { hlc: 1, origin: 2 };

    #[test]
    fn tables_are_aligned_by_characters_and_have_no_trailing_blanks() {
        let rows = [["NAME", "KEYS"], ["größe", "1"], ["x", "22"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(align(&rows), "NAME   KEYS\ngröße  1\nx      22\n");
    }

    #[test]
    fn a_preview_is_short_and_harmless() {
        assert_eq!(preview(b"plain"), "plain");
        assert_eq!(preview(b"two\nlines \x1b[2J"), "two\\nlines \\u{1b}[2J");
        assert_eq!(preview(&[0xff, 0]), "(binary)");
        let long = preview(&[b'a'; 100]);
        assert_eq!(long, "a".repeat(57) + "...");
    }

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(event_row("put", "k", Some(b"two\nlines")), "put k two\\nlines");
        assert_eq!(event_row("put", "a\nb", Some(&[0xff])), "put a\\nb (binary)");
        assert_eq!(event_row("deleted", "k", None), "deleted k");
        assert_eq!(event_row("live", "", None), "live");
    }

    #[test]
    fn json_carries_any_value() {
        let text = entry("k", "grüß".as_bytes(), VERSION, Some(Duration::from_millis(2500)));
        assert_eq!(text["value"], "Z3LDvMOf");
        assert_eq!(text["text"], "grüß");
        assert_eq!(text["ttlMs"], 2500);
        let binary = entry("k", &[0xff], VERSION, None);
        assert_eq!(binary["value"], "/w==");
        assert!(binary.get("text").is_none() && binary["ttlMs"].is_null());
    }
}
