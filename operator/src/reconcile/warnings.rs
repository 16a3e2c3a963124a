//! Warning events of Kubernetes on the objects of a cluster.
//!
//! They are read for pods that are missing or not ready, not watched, so a cluster at rest costs one request. Knows nothing of
//! what the events mean for the cluster.

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, Client, api::ListParams};

use crate::api_server::ApiError;

/// The most events of one answer.
const MOST: u32 = 500;
/// The most pods whose events are read: the events of one pod mostly apply to all.
pub const MOST_PODS: usize = 6;
/// Reason of an event on an object whose pod could not be created.
const FAILED_CREATE: &str = "FailedCreate";

/// A Warning event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Kind of the object.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// One word.
    pub reason: String,
    /// The message of Kubernetes.
    pub message: String,
    /// When it last occurred.
    pub at: Timestamp,
}

impl Warning {
    fn of(event: Event) -> Option<Self> {
        // Old and new clients of the events API store the time in different fields.
        let at = event
            .series
            .and_then(|series| series.last_observed_time)
            .map(|time| time.0)
            .or(event.last_timestamp.map(|time| time.0))
            .or(event.event_time.map(|time| time.0))
            .or(event.first_timestamp.map(|time| time.0))
            .or(event.metadata.creation_timestamp.map(|time| time.0))?;
        Some(Self {
            kind: event.involved_object.kind?,
            name: event.involved_object.name?,
            reason: event.reason?,
            message: event.message.unwrap_or_default().trim().to_owned(),
            at,
        })
    }

    /// Why the API server refused to create a pod; `None` if the event is about something else.
    pub fn refusal(&self) -> Option<&str> {
        // The StatefulSet controller writes "create Pod demo-1 in StatefulSet demo failed error: …", others "Error creating: …".
        (self.reason == FAILED_CREATE).then(|| {
            let said = self.message.split_once("failed error: ").map_or(self.message.as_str(), |(_, said)| said);
            said.strip_prefix("Error creating: ").unwrap_or(said)
        })
    }
}

/// The warnings of a namespace about pods that could not be created, and those on these pods.
pub async fn read(client: &Client, namespace: &str, pods: &[String]) -> Result<Vec<Warning>, ApiError> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut warnings = Vec::new();
    let refused = format!("type=Warning,reason={FAILED_CREATE}");
    let of_pods = pods
        .iter()
        .take(MOST_PODS)
        .map(|pod| format!("type=Warning,involvedObject.kind=Pod,involvedObject.name={pod}"));
    for fields in std::iter::once(refused).chain(of_pods) {
        let found = events.list(&ListParams::default().fields(&fields).limit(MOST)).await?;
        warnings.extend(found.items.into_iter().filter_map(Warning::of));
    }
    warnings.sort_by_key(|warning| warning.at);
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{Json, Router, routing::get};
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    fn event(value: Value) -> Event {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn warnings_of_old_and_new_clients_are_read() {
        let at = |fields: Value| {
            let mut whole = json!({ "metadata": {}, "reason": "Failed", "message": " why\n",
                "involvedObject": { "kind": "Pod", "name": "demo-1" } });
            json_patch::merge(&mut whole, &fields);
            Warning::of(event(whole)).map(|warning| (warning.at.as_second(), warning.message))
        };
        let why = |second| Some((second, "why".to_owned()));
        assert_eq!(
            at(json!({ "lastTimestamp": "1970-01-01T00:00:05Z", "firstTimestamp": "1970-01-01T00:00:01Z" })),
            why(5)
        );
        assert_eq!(at(json!({ "eventTime": "1970-01-01T00:00:07.000000Z" })), why(7));
        let series = json!({ "count": 2, "lastObservedTime": "1970-01-01T00:00:09.000000Z" });
        assert_eq!(at(json!({ "eventTime": "1970-01-01T00:00:07.000000Z", "series": series })), why(9));
        assert_eq!(at(json!({})), None, "no time at all");
    }

    #[test]
    fn warnings_quote_the_api_server() {
        let said = |reason: &str, message: &str| {
            let (kind, name) = (String::new(), String::new());
            let warning =
                Warning { kind, name, reason: reason.into(), message: message.into(), at: Timestamp::UNIX_EPOCH };
            warning.refusal().map(str::to_owned)
        };
        let quota = "pods \"demo-1\" is forbidden: exceeded quota: small";
        let by_set = format!("create Pod demo-1 in StatefulSet demo failed error: {quota}");
        assert_eq!(said("FailedCreate", &by_set).as_deref(), Some(quota));
        assert_eq!(said("FailedCreate", &format!("Error creating: {quota}")).as_deref(), Some(quota));
        assert_eq!(said("FailedMount", quota), None);
    }

    #[tokio::test]
    async fn warnings_take_one_request_and_one_per_pod() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let list = move |uri: axum::http::Uri| async move {
            noted.lock().push(uri.query().unwrap_or_default().to_owned());
            Json(json!({ "kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [] }))
        };
        let router = Router::new().route("/api/v1/namespaces/shop/events", get(list));
        let client = Client::new(router, "default");
        read(&client, "shop", &[]).await.unwrap();
        assert_eq!(asked.lock().len(), 1, "at rest");
        let pods: Vec<_> = (0..64).map(|ordinal| format!("demo-{ordinal}")).collect();
        read(&client, "shop", &pods).await.unwrap();
        let asked = asked.lock();
        assert_eq!(asked.len(), 2 + MOST_PODS);
        assert!(asked[1].contains("FailedCreate") && asked[2].contains("demo-0"), "{asked:?}");
    }
}
