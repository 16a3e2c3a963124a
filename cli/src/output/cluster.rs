//! Prints what a node says of itself and of its cluster.

use super::text::{duration, field, printable};
use super::{Out, encode};
use crate::args::Format;
use kvasir_client::{ClusterEvent, Leader, Member, SkewedPeer, Status, UnjoinablePeer, WhoAmI};
use serde_json::json;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

impl Out {
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
                let at = node.at.and_then(encode::since_1970);
                let role = node.role.to_string();
                self.json(&json!({"event": what, "name": node.name, "origin": node.origin, "role": role, "atMs": at}))?;
            }
        }
        self.stdout.flush()
    }

    pub(crate) fn members(&mut self, members: &[Member]) -> io::Result<()> {
        match self.format {
            Format::Text => {
                let header = ["NAME", "ROLE", "STATE", "LINKED", "ADDRESS", "VERSION", "AGE", "FOUND BY", "ORIGIN"];
                let rows = members.iter().map(member_row).collect();
                self.table(Some(&header), rows)
            }
            Format::Json => self.json(&json!({"members": members.iter().map(encode::member).collect::<Vec<_>>()})),
        }
    }

    pub(crate) fn status(&mut self, status: &Status) -> io::Result<()> {
        match self.format {
            Format::Text => self.table(None, status_rows(status)),
            Format::Json => self.json(&encode::status(status)),
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
                "member": encode::member(&who.member),
                "cluster": who.cluster,
                "clusterUid": who.cluster_uid,
                "phase": who.phase.to_string(),
            })),
        }
    }

    /// As text the name alone, which is easy to use in a script.
    pub(crate) fn leader(&mut self, leader: &Leader) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stdout, "{}", leader.member.name),
            Format::Json => self.json(&json!({"leader": encode::member(&leader.member), "isMe": leader.is_me})),
        }
    }
}

fn status_rows(status: &Status) -> Vec<Vec<String>> {
    let overfull =
        if status.overfull { "yes: it lacks writes of peers that it had no room for (maxMemory)" } else { "no" };
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
        field("lag", &status.lag.map_or("no peer".into(), duration)),
        field("fingerprint", &status.fingerprint),
        field("seats", &seats(status)),
        field("deletes forgotten", &forgotten(status)),
        field("overfull", &overfull),
        field("returns", &status.returns),
    ];
    for SkewedPeer { name, reason } in &status.skewed {
        rows.push(field(&format!("refused {}", printable(name)), &printable(reason)));
    }
    for UnjoinablePeer { address, name, why, .. } in &status.unjoinable {
        let peer = name.as_ref().map_or_else(|| address.clone(), |name| format!("{name} ({address})"));
        rows.push(field(&format!("cannot join {}", printable(&peer)), &printable(why)));
    }
    for line in &status.waits_for {
        rows.push(field("waiting", &printable(line)));
    }
    for discovery in &status.discovery {
        let error = discovery.error.as_ref().map_or(String::new(), |error| format!(", failing: {error}"));
        let members = discovery.members.join(", ");
        let found = format!("{} found ({members}){error}", discovery.found);
        rows.push(field(&format!("discovery {}", discovery.provider), &found));
    }
    rows
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

/// The states in which there is a seat.
fn seats(status: &Status) -> String {
    let taken = status.seats.iter().filter(|(_, count)| **count > 0);
    taken.map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

fn forgotten(status: &Status) -> String {
    status.collected_age.map_or("none".into(), |age| format!("up to {} ago", duration(age)))
}

fn founded(status: &Status) -> String {
    status.founded_at.map_or("not yet".into(), |at| format!("{} ago", since(at)))
}

fn age(member: &Member) -> String {
    member.started_at.map_or("-".into(), since)
}

fn since(at: SystemTime) -> String {
    // If our clock is behind the other node's, the age is 0.
    duration(SystemTime::now().duration_since(at).unwrap_or(Duration::ZERO))
}
