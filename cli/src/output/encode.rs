//! JSON for scripts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvasir_client::{DiscoveryStatus, Event, Member, SkewedPeer, Status, UnjoinablePeer, Version};
use serde_json::{Value as Json, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A value in base64, and also as text if it is text.
pub(super) fn entry(key: &str, value: &[u8], version: Version, ttl: Option<Duration>) -> Json {
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

/// What happened to a key; `what` names the kind of event.
pub(super) fn event(what: &str, event: &Event) -> Json {
    let mut line = json!({"event": what});
    let (key, version) = match event {
        Event::Put { key, value } => {
            line["value"] = BASE64.encode(&value.value).into();
            (key, value.version)
        }
        Event::Deleted { key, version } | Event::Expired { key, version } => (key, *version),
        Event::Restarted | Event::Live => return line,
    };
    line["key"] = key.as_str().into();
    line["version"] = version.to_string().into();
    line
}

pub(super) fn member(member: &Member) -> Json {
    json!({
        "name": member.name,
        "origin": member.origin,
        "role": member.role.to_string(),
        "address": member.peer_address,
        "state": member.state.to_string(),
        "startedAtMs": member.started_at.and_then(since_1970),
        "version": member.version,
        "linked": member.linked,
        "foundBy": member.found_by,
    })
}

pub(super) fn status(status: &Status) -> Json {
    json!({
        "member": member(&status.member),
        "phase": status.phase.to_string(),
        "foundedAtMs": status.founded_at.and_then(since_1970),
        "keys": status.keys,
        "tombstones": status.tombstones,
        "memoryBytes": status.memory_bytes,
        "maxMemoryBytes": status.max_memory_bytes,
        "fingerprint": status.fingerprint,
        "lagMs": status.lag.map(millis),
        "discovery": status.discovery.iter().map(discovery).collect::<Vec<_>>(),
        "seats": status.seats,
        "collectedAgeMs": status.collected_age.map(millis),
        "overfull": status.overfull,
        "returns": status.returns,
        "skewed": status.skewed.iter().map(skewed).collect::<Vec<_>>(),
        "unjoinable": status.unjoinable.iter().map(unjoinable).collect::<Vec<_>>(),
        "waitsFor": status.waits_for,
    })
}

fn discovery(DiscoveryStatus { provider, found, error, failures, members }: &DiscoveryStatus) -> Json {
    json!({"provider": provider, "found": found, "error": error, "failures": failures, "members": members})
}

fn skewed(SkewedPeer { name, reason }: &SkewedPeer) -> Json {
    json!({"name": name, "reason": reason})
}

fn unjoinable(UnjoinablePeer { address, name, reason, why }: &UnjoinablePeer) -> Json {
    json!({"address": address, "name": name, "reason": reason, "why": why})
}

/// Milliseconds since 1970.
pub(super) fn since_1970(at: SystemTime) -> Option<u64> {
    at.duration_since(UNIX_EPOCH).ok().map(millis)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Version = Version { hlc: 1, origin: 2 };

    #[test]
    fn entries_carry_any_value() {
        let text = entry("k", "grüß".as_bytes(), VERSION, Some(Duration::from_millis(2500)));
        assert_eq!(text["value"], "Z3LDvMOf");
        assert_eq!(text["text"], "grüß");
        assert_eq!(text["ttlMs"], 2500);
        let binary = entry("k", &[0xff], VERSION, None);
        assert_eq!(binary["value"], "/w==");
        assert!(binary.get("text").is_none() && binary["ttlMs"].is_null());
    }

    #[test]
    fn events_have_what_belongs_to_their_kind() {
        assert_eq!(event("live", &Event::Live), json!({"event": "live"}));
        let deleted = Event::Deleted { key: "k".into(), version: VERSION };
        let expected = json!({"event": "deleted", "key": "k", "version": "0000000000000001-0000000000000002"});
        assert_eq!(event("deleted", &deleted), expected);
    }
}
