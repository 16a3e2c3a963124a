//! The API server's audit log. The throwaway cluster keeps one; see `e2e/cluster/README.md`.
//!
//! Knows nothing of why an object was written.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One write that a service account requested.
#[derive(Debug)]
pub struct Write {
    /// As in `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// As in `patch`.
    pub verb: String,
    /// As in `kvclusters/status`.
    pub resource: String,
    /// Empty for objects without a namespace.
    pub namespace: String,
    /// Empty if the server was to choose the name.
    pub name: String,
}

/// The current length of the log in lines, to read on from; none if this cluster keeps no log.
pub async fn mark() -> Result<Option<usize>> {
    Ok(lines().await?.map(|lines| lines.len()))
}

/// The writes recorded after a mark.
pub async fn since(mark: usize) -> Result<Vec<Write>> {
    let lines = lines().await?.context("the audit log was there and is gone")?;
    lines.iter().skip(mark).map(|line| parse(line)).collect()
}

async fn lines() -> Result<Option<Vec<String>>> {
    let Some(path) = std::env::var_os("KV_AUDIT_LOG") else { return Ok(None) };
    let text = tokio::fs::read_to_string(&path).await.with_context(|| format!("cannot read {}", path.display()))?;
    // A last line without a line break is still being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(Some(whole.lines().map(str::to_owned).collect()))
}

fn parse(line: &str) -> Result<Write> {
    let event: Value = serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let resource = match text("/objectRef/subresource").as_str() {
        "" => text("/objectRef/resource"),
        sub => format!("{}/{sub}", text("/objectRef/resource")),
    };
    Ok(Write {
        user: text("/user/username"),
        verb: text("/verb"),
        resource,
        namespace: text("/objectRef/namespace"),
        name: text("/objectRef/name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read() {
        let line = r#"{"kind":"Event","verb":"patch","user":{"username":"system:serviceaccount:a:b"},
            "objectRef":{"resource":"kvclusters","namespace":"n","name":"demo","subresource":"status"}}"#;
        let write = parse(line).expect("it is an event");
        assert_eq!(write.user, "system:serviceaccount:a:b");
        assert_eq!(write.resource, "kvclusters/status");
        assert_eq!((write.namespace.as_str(), write.name.as_str(), write.verb.as_str()), ("n", "demo", "patch"));
        assert!(parse("half a li").is_err());
    }
}
