//! Compares a desired object with the live one.
//!
//! Knows nothing of the API server's answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kvasir_formats::quantity;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::names;

/// Lists that server-side apply replaces as a whole, although their elements have names.
const WHOLE_LISTS: [&str; 2] = ["rules", "subjects"];

/// Whether an object belongs to this cluster: by its owner or, if its owner reference was removed, by its labels.
pub fn is_ours<K: Resource>(live: &K, owner: &OwnerReference) -> bool {
    let metadata = live.meta();
    let controller = metadata.owner_references.iter().flatten().find(|reference| reference.controller == Some(true));
    if let Some(reference) = controller {
        return reference.uid == owner.uid;
    }
    let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    label(names::MANAGED_BY) == Some(names::OPERATOR) && label(names::MEMBER_OF) == Some(owner.name.as_str())
}

/// Annotates an object with its own hash.
pub fn stamp(mut object: Value) -> Value {
    let hash = format!("{:016x}", xxh3_64(object.to_string().as_bytes()));
    object["metadata"]["annotations"][names::APPLIED] = Value::String(hash);
    object
}

/// Whether the live object has every field of the desired one, with the same value.
pub fn holds(live: &Value, desired: &Value) -> bool {
    holds_at("", live, desired)
}

fn holds_at(key: &str, live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(field, desired)| match live.get(field) {
            Some(live) if matches!(key, "limits" | "requests") => same_quantity(live, desired),
            Some(live) => holds_at(field, live, desired),
            None => is_empty(desired),
        }),
        (Value::Array(live), Value::Array(desired)) => {
            let named = !desired.is_empty() && desired.iter().all(|element| element.get("name").is_some());
            if named && !WHOLE_LISTS.contains(&key) {
                // A list by name, to which others may have added elements.
                desired.iter().all(|desired| live.iter().any(|live| holds_at("", live, desired)))
            } else {
                live.len() == desired.len()
                    && live.iter().zip(desired).all(|(live, desired)| holds_at("", live, desired))
            }
        }
        (live, desired) => live == desired,
    }
}

/// The API server does not store empty values.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn same_quantity(live: &Value, desired: &Value) -> bool {
    let milli = |value: &Value| value.as_str().and_then(quantity::milli);
    live == desired || milli(live).is_some_and(|live| milli(desired) == Some(live))
}
