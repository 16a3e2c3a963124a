//! A small API server for tests: objects, lists, watches, leases, server-side apply of ports, and outages.
//!
//! It has one namespace, ignores selectors, and knows objects by their plural and name.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::body::Body as Answer;
use futures::channel::mpsc;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::{BoxError, service_fn};

const PLURALS: [&str; 13] = [
    "configmaps",
    "events",
    "kvclusters",
    "leases",
    "mutatingwebhookconfigurations",
    "poddisruptionbudgets",
    "pods",
    "rolebindings",
    "roles",
    "secrets",
    "serviceaccounts",
    "services",
    "statefulsets",
];

/// Returns why a write is refused with 422, given the method, the plural, the live object and the sent one.
type Rule = Box<dyn Fn(&Method, &str, Option<&Value>, &Value) -> Option<String> + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    /// Watches from before this version have expired.
    oldest: u64,
    watchers: Vec<(String, mpsc::UnboundedSender<io::Result<String>>)>,
    forbidden: Option<&'static str>,
    no_watches: bool,
    rule: Option<Rule>,
    requests: Vec<(Method, String)>,
}

/// A connection to the fake API server. Clones share the connection; [`Fake::another`] is another one to the same server.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    away: Arc<AtomicBool>,
}

impl Fake {
    /// Another connection to the same server, with its own outages.
    pub(crate) fn another(&self) -> Self {
        Self { state: self.state.clone(), away: Arc::default() }
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        Client::new(
            service_fn(move |request: Request<Body>| {
                let fake = fake.clone();
                async move { fake.answer(request).await }
            }),
            "shop",
        )
    }

    /// The server becomes unreachable: watches break, requests fail, and earlier resource versions expire.
    pub(crate) fn leave(&self) {
        self.away.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.version += 1;
        state.oldest = state.version;
        for (_, watcher) in state.watchers.drain(..) {
            drop(watcher.unbounded_send(Err(io::Error::other("connection reset"))));
        }
    }

    pub(crate) fn back(&self) {
        self.away.store(false, Ordering::Relaxed);
    }

    /// Refuses all requests for one plural.
    pub(crate) fn forbid(&self, plural: &'static str) {
        self.state.lock().forbidden = Some(plural);
    }

    /// Refuses watches; lists are answered.
    pub(crate) fn forbid_watches(&self) {
        self.state.lock().no_watches = true;
    }

    pub(crate) fn rule(&self, rule: impl Fn(&Method, &str, Option<&Value>, &Value) -> Option<String> + Send + 'static) {
        self.state.lock().rule = Some(Box::new(rule));
    }

    pub(crate) fn object(&self, plural: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    /// Stores an object and notifies watches, as a change by another client.
    pub(crate) fn put(&self, plural: &str, object: Value) {
        self.state.lock().store(plural, object);
    }

    /// The number of requests of a method to paths with this end.
    pub(crate) fn count(&self, method: &Method, end: &str) -> usize {
        self.state.lock().requests.iter().filter(|(one, path)| one == method && path.ends_with(end)).count()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
        if self.away.load(Ordering::Relaxed) {
            return Err(refused().into());
        }
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let sent: Value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let kind = parts.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let answer = self.state.lock().answer(&parts.method, parts.uri.path(), &query, &kind, sent);
        Ok(answer)
    }
}

fn reply(code: u16, body: &Value) -> Response<Answer> {
    Response::builder().status(code).body(Answer::from(body.to_string())).unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Response<Answer> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code});
    reply(code, &status)
}

impl State {
    fn store(&mut self, plural: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = object["metadata"]["name"].as_str().expect("objects have names").to_owned();
        let known = self.objects.insert((plural.to_owned(), name), object.clone()).is_some();
        let event = json!({"type": if known { "MODIFIED" } else { "ADDED" }, "object": object});
        self.tell(plural, &event);
        object
    }

    fn tell(&mut self, plural: &str, event: &Value) {
        self.watchers
            .retain(|(watched, watcher)| watched != plural || watcher.unbounded_send(Ok(format!("{event}\n"))).is_ok());
    }

    fn answer(&mut self, method: &Method, path: &str, query: &str, kind: &str, sent: Value) -> Response<Answer> {
        self.requests.push((method.clone(), path.to_owned()));
        let parts: Vec<&str> = path.split('/').collect();
        let at = parts.iter().rposition(|part| PLURALS.contains(part)).expect("a known plural");
        let (plural, name) = (parts[at], parts.get(at + 1).copied());
        if self.forbidden == Some(plural) {
            return failure(403, "Forbidden", &format!("{plural} is forbidden"));
        }
        let Some(name) = name else {
            return if method == Method::POST {
                self.create(plural, query, sent)
            } else if query.contains("watch=true") {
                self.watch(plural, query)
            } else {
                let items: Vec<_> =
                    self.objects.iter().filter(|((one, _), _)| one == plural).map(|(_, object)| object).collect();
                let version = self.version.max(1).to_string();
                let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
                reply(200, &list)
            };
        };
        let key = (plural.to_owned(), name.to_owned());
        let live = self.objects.get(&key).cloned();
        if *method == Method::GET {
            return live.map_or_else(|| failure(404, "NotFound", "not found"), |object| reply(200, &object));
        }
        if *method == Method::PATCH {
            return self.patch(plural, name, query, kind, live, sent);
        }
        let Some(live) = live else { return failure(404, "NotFound", "not found") };
        if *method == Method::PUT {
            if sent["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"] {
                return failure(409, "Conflict", "the object has been modified");
            }
            return reply(200, &self.store(plural, sent));
        }
        assert_eq!(*method, Method::DELETE);
        for field in ["uid", "resourceVersion"] {
            let wanted = &sent["preconditions"][field];
            if !wanted.is_null() && *wanted != live["metadata"][field] {
                return failure(409, "Conflict", "precondition failed");
            }
        }
        if sent["propagationPolicy"] == "Orphan" {
            // The finalizer that orphans dependents keeps the object for a while.
            let mut going = live;
            going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            going["metadata"]["finalizers"] = json!(["orphan"]);
            return reply(200, &self.store(plural, going));
        }
        self.objects.remove(&key);
        self.tell(plural, &json!({"type": "DELETED", "object": live}));
        reply(200, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200}))
    }

    fn watch(&mut self, plural: &str, query: &str) -> Response<Answer> {
        if self.no_watches {
            return failure(500, "InternalError", "no watches today");
        }
        let (sender, receiver) = mpsc::unbounded();
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse::<u64>().ok());
        if from.is_some_and(|from| from < self.oldest) {
            let expired = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410, "reason": "Expired", "message": "too old resource version"}});
            drop(sender.unbounded_send(Ok(format!("{expired}\n"))));
        }
        self.watchers.push((plural.to_owned(), sender));
        Response::new(Answer::from_stream(receiver))
    }

    fn refusal(&self, method: &Method, plural: &str, live: Option<&Value>, sent: &Value) -> Option<Response<Answer>> {
        let reason = self.rule.as_ref().and_then(|rule| rule(method, plural, live, sent))?;
        Some(failure(422, "Invalid", &reason))
    }

    fn create(&mut self, plural: &str, query: &str, sent: Value) -> Response<Answer> {
        if let Some(refusal) = self.refusal(&Method::POST, plural, None, &sent) {
            return refusal;
        }
        let name = sent["metadata"]["name"].as_str().unwrap_or("generated").to_owned();
        if self.objects.contains_key(&(plural.to_owned(), name)) {
            return failure(409, "AlreadyExists", "already exists");
        }
        if query.contains("dryRun=All") || plural == "events" {
            return reply(201, &sent);
        }
        reply(201, &self.store(plural, sent))
    }

    #[expect(clippy::needless_pass_by_value, reason = "the caller has no more use for it")]
    fn patch(
        &mut self,
        plural: &str,
        name: &str,
        query: &str,
        kind: &str,
        live: Option<Value>,
        sent: Value,
    ) -> Response<Answer> {
        if let Some(refusal) = self.refusal(&Method::PATCH, plural, live.as_ref(), &sent) {
            return refusal;
        }
        let manager = query.split('&').find_map(|part| part.strip_prefix("fieldManager=")).unwrap_or("unknown");
        let mut object = live.clone().unwrap_or_else(|| json!({"metadata": {"name": name, "uid": "u-new"}}));
        let operation = match (kind, &live) {
            ("application/json-patch+json", Some(_)) => {
                let patch: json_patch::Patch = serde_json::from_value(sent).unwrap();
                json_patch::patch(&mut object, &patch).unwrap();
                return reply(200, &self.store(plural, object));
            }
            ("application/merge-patch+json", Some(live)) => {
                assert_eq!(sent["metadata"]["resourceVersion"], live["metadata"]["resourceVersion"]);
                json_patch::merge(&mut object, &sent);
                "Update"
            }
            ("application/apply-patch+yaml", _) => {
                apply("", &mut object, &sent);
                "Apply"
            }
            (kind, live) => panic!("a patch of type {kind} for {live:?}"),
        };
        if let Some(name) = twice(&object) {
            return failure(422, "Invalid", &format!("spec.ports[1].name: Duplicate value: {name}"));
        }
        let managers = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let entry = json!({"manager": manager, "operation": operation});
        let managers: Vec<_> = managers.into_iter().filter(|one| *one != entry).chain([entry.clone()]).collect();
        object["metadata"]["managedFields"] = json!(managers);
        reply(200, &self.store(plural, object))
    }
}

/// Server-side apply: objects are merged, ports by number and protocol, other lists are replaced.
fn apply(key: &str, live: &mut Value, sent: &Value) {
    match (live, sent) {
        (Value::Object(live), Value::Object(sent)) => {
            for (field, sent) in sent {
                apply(field, live.entry(field.clone()).or_insert(Value::Null), sent);
            }
        }
        (Value::Array(live), Value::Array(sent)) if key == "ports" => {
            for port in sent {
                let same = |one: &&mut Value| one["port"] == port["port"] && one["protocol"] == port["protocol"];
                match live.iter_mut().find(same) {
                    Some(found) => apply("", found, port),
                    None => live.push(port.clone()),
                }
            }
        }
        (live, sent) => *live = sent.clone(),
    }
}

/// A name that two ports of a Service have.
fn twice(object: &Value) -> Option<&Value> {
    let ports = object["spec"]["ports"].as_array()?;
    ports.iter().enumerate().find_map(|(index, port)| {
        ports[..index].iter().any(|other| other["name"] == port["name"]).then_some(&port["name"])
    })
}
