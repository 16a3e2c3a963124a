//! Against a router that plays the API server: one Secret, and one answer about rights.

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use super::*;
use crate::validate::tests::valid;

const ALL: &str = "{tls: {operator: {}}, access: {tokensSecret: {name: s, key: t}, clientCaSecret: {name: s, key: ca},
    serviceAccounts: {audiences: [kvasir], reviewTtl: 30s},
    rules: [{subjects: ['token:app', '*'], prefix: app/, verbs: [read, write]}, {subjects: ['cert:ops'], verbs: [admin]}]}}";

fn api_server(secret: Option<Value>, allowed: bool) -> Client {
    let read = get(move || async move {
        let none = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": "NotFound", "code": 404});
        secret.map_or_else(
            || -> Response { (StatusCode::NOT_FOUND, Json(none)).into_response() },
            |data| Json(json!({"metadata": {"name": "s"}, "data": data})).into_response(),
        )
    });
    let review = post(move |Json(mut review): Json<Value>| async move {
        let spec = &review["spec"];
        assert_eq!(spec["user"], "system:serviceaccount:shop:demo");
        assert_eq!(spec["resourceAttributes"]["resource"], "tokenreviews");
        review["status"] = json!({ "allowed": allowed });
        Json(review)
    });
    let reviews = "/apis/authorization.k8s.io/v1/namespaces/shop/localsubjectaccessreviews";
    Client::new(Router::new().route("/api/v1/namespaces/shop/secrets/s", read).route(reviews, review), "default")
}

/// What the Secret holds, with an authority that is one.
fn data(ca: &str) -> Value {
    json!({ "t": ByteString(b"app: 0123456789abcdef".to_vec()), "ca": ByteString(ca.as_bytes().to_vec()) })
}

fn authority() -> String {
    certs::renew(None, certs::Purpose::Nodes, &["a".to_owned()], 1_793_491_200).unwrap().unwrap().0.authorities
}

#[tokio::test]
async fn what_is_needed_is_looked_for() {
    let cluster = valid(ALL);
    let looked = |secret, allowed| {
        let (client, cluster) = (api_server(secret, allowed), cluster.clone());
        async move { look(&client, &cluster, "mine-token-review").await }
    };
    let ca = authority();
    assert_eq!(looked(Some(data(&ca)), true).await.unwrap(), None);
    let concern = looked(Some(data(&ca)), false).await.unwrap().unwrap();
    assert_eq!(concern.reason, "TokenReviewForbidden");
    let wanted = "--clusterrole=mine-token-review --serviceaccount=shop:demo";
    assert!(concern.message.contains(wanted), "{}", concern.message);
    assert_eq!(looked(None, true).await.unwrap_err().reason(), "AccessSecretMissing");
    assert_eq!(
        looked(Some(json!({ "ca": ByteString(ca.into_bytes()) })), true).await.unwrap_err().reason(),
        "AccessSecretMissing"
    );
    assert_eq!(looked(Some(data("none")), true).await.unwrap_err().reason(), "AccessSecretMalformed");
    let nobody = Client::new(Router::new(), "default");
    assert_eq!(look(&nobody, &valid("{}"), "r").await.unwrap(), None, "nothing is asked without access");
    // Without service accounts nothing is asked about rights.
    let tokens = valid("{access: {tokensSecret: {name: s, key: t}}}");
    assert_eq!(look(&api_server(Some(data("")), false), &tokens, "r").await.unwrap(), None);
}

#[test]
fn only_the_files_that_are_named_are_mounted() {
    let files = |spec: &str| {
        let access = valid(spec).access.unwrap();
        let sources = volume(&access).map(|volume| volume.projected.unwrap().sources.unwrap());
        assert_eq!(sources.is_some(), mount(&access).is_some());
        let items = sources.into_iter().flatten().map(|source| source.secret.unwrap().items.unwrap().remove(0));
        items.map(|item| (item.key, format!("{FOLDER}/{}", item.path))).collect::<Vec<_>>()
    };
    let wanted = [("t", "/etc/kvasir-access/tokens.yaml"), ("ca", CLIENT_CA_FILE)];
    assert_eq!(files(ALL), wanted.map(|(key, path)| (key.to_owned(), path.to_owned())));
    assert_eq!(files("{access: {serviceAccounts: {}}}"), []);
}

#[test]
fn what_slips_past_the_schema_is_refused() {
    for (spec, field) in [
        ("{access: {}}", "spec.access"),
        ("{access: {clientCaSecret: {name: s, key: k}}}", "spec.access.clientCaSecret"),
        (
            "{tls: {operator: {}, client: false, peers: true}, access: {clientCaSecret: {name: s, key: k}}}",
            "spec.access.clientCaSecret",
        ),
        ("{access: {serviceAccounts: {audiences: ['']}}}", "spec.access.serviceAccounts.audiences"),
        ("{access: {serviceAccounts: {reviewTtl: 11m}}}", "spec.access.serviceAccounts.reviewTtl"),
        ("{access: {serviceAccounts: {reviewTtl: soon}}}", "spec.access.serviceAccounts.reviewTtl"),
        ("{access: {serviceAccounts: {}, rules: [{subjects: [], verbs: [read]}]}}", "spec.access.rules"),
        ("{access: {serviceAccounts: {}, rules: [{subjects: ['user:a'], verbs: [read]}]}}", "spec.access.rules"),
        ("{access: {serviceAccounts: {}, rules: [{subjects: ['token:'], verbs: [read]}]}}", "spec.access.rules"),
        ("{access: {serviceAccounts: {}, rules: [{subjects: ['*'], verbs: []}]}}", "spec.access.rules"),
        ("{access: {serviceAccounts: {}, rules: [{subjects: ['*'], verbs: [own]}]}}", "spec.access.rules"),
    ] {
        let spec_of: KvClusterSpec = serde_yaml::from_str(spec).unwrap();
        assert_eq!(check(&spec_of).unwrap_err().0, field, "{spec}");
    }
    check(&serde_yaml::from_str(ALL).unwrap()).unwrap();
}
