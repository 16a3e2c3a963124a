//! Against a router that acts as the API server: one Secret, and one access review.

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use serde_json::{Value, json};

use super::*;
use crate::cluster::validate::tests::valid;

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

/// The data of the Secret.
fn data(ca: &str) -> Value {
    json!({ "t": ByteString(b"app: 0123456789abcdef".to_vec()), "ca": ByteString(ca.as_bytes().to_vec()) })
}

fn authority() -> String {
    certs::renew(None, certs::Purpose::Nodes, &["a".to_owned()], 1_793_491_200).unwrap().unwrap().0.authorities
}

#[tokio::test]
async fn access_check_finds_what_is_missing() {
    let cluster = valid(ALL);
    let looked = |secret, allowed| {
        let (client, cluster) = (api_server(secret, allowed), cluster.clone());
        async move { check(&client, &cluster, "mine-token-review").await }
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
    let unused = Client::new(Router::new(), "default");
    assert_eq!(check(&unused, &valid("{}"), "r").await.unwrap(), None, "without access nothing is checked");
    // Without service accounts no access review is requested.
    let tokens = valid("{access: {tokensSecret: {name: s, key: t}}}");
    assert_eq!(check(&api_server(Some(data("")), false), &tokens, "r").await.unwrap(), None);
}
