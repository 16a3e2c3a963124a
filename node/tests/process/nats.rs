//! The NATS provider alone, against a real server: which nodes it finds, what a restart does, how it logs in.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kvasir_node::config::Settings;
use kvasir_node::discovery::{View, configured, start};
use kvasir_testing::authority::Authority;
use nkeys::KeyPair;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::harness::{PATIENCE, eventually};
use crate::nats_server::NatsServer;

/// A node as the provider sees it: its own address, and the peers that it finds.
struct Eyes(watch::Receiver<Arc<View>>);

fn at(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 7071).into()
}

/// The provider of the node at `me`, with these settings and the server's URL.
fn look(me: SocketAddr, url: &str, more: &str) -> Eyes {
    look_in(me, &format!("'{url}'"), &format!(", subject: kvasir.test{more}"))
}

fn look_in(me: SocketAddr, server: &str, more: &str) -> Eyes {
    let text = format!("{{name: node, discovery: {{nats: {{server: {server}, reconnectWait: 100ms{more}}}}}}}");
    let config = Settings::from_yaml("test".as_ref(), &text).unwrap().validate().unwrap();
    Eyes(start(configured(&config.discovery, me)))
}

impl Eyes {
    async fn see(&mut self, numbers: &[u8]) {
        let wanted: BTreeSet<_> = numbers.iter().map(|number| at(*number)).collect();
        self.until(&format!("{numbers:?}"), |view| {
            view.answered() && view.providers[0].error.is_none() && view.addresses.keys().eq(&wanted)
        })
        .await;
    }

    async fn until(&mut self, what: &str, is: impl Fn(&View) -> bool) -> Arc<View> {
        let seen = timeout(PATIENCE, self.0.wait_for(|view| is(view))).await.map(|view| view.unwrap().clone());
        seen.unwrap_or_else(|_| panic!("never happened: {what}: {:?}", self.0.borrow()))
    }

    async fn fail(&mut self) -> String {
        let view = self.until("an error", |view| view.providers[0].error.is_some()).await;
        view.providers[0].error.clone().unwrap()
    }
}

/// Nodes on another subject stay apart.
#[tokio::test]
async fn nats_nodes_on_one_subject_find_each_other() {
    let server = NatsServer::started(&[]);
    let mut a = look(at(1), &server.url(), "");
    a.see(&[1]).await;
    let mut b = look(at(2), &server.url(), "");
    let mut other = look_in(at(9), &server.url(), ", subject: kvasir.other");
    b.see(&[1, 2]).await;
    a.see(&[1, 2]).await;
    other.see(&[9]).await;

    // A new node asks, and does not wait for the others' next announcements: its first result is complete, unless the
    // machine stalls. Without the request there would be no first result.
    eventually("a first answer is whole", async || {
        let view = look(at(3), &server.url(), "").until("the first answer", View::answered).await;
        if view.addresses.len() == 3 { Ok(()) } else { Err(view) }
    })
    .await;
    let mut c = look(at(3), &server.url(), "");
    c.see(&[1, 2, 3]).await;
    a.see(&[1, 2, 3]).await;
    b.see(&[1, 2, 3]).await;

    // Only the node that left is forgotten.
    drop(b);
    a.see(&[1, 3]).await;
    c.see(&[1, 3]).await;
    other.see(&[9]).await;
}

#[tokio::test]
async fn the_server_may_come_later_and_restart() {
    let mut server = NatsServer::new(&[]);
    let mut a = look(at(1), &server.url(), ", maxJoinAttempts: 2");
    let mut b = look(at(2), &server.url(), "");
    // Longer than the retries with a constant interval.
    a.until("four failures", |view| view.providers[0].failures >= 4).await;
    let error = a.fail().await;
    assert!(error.contains(&server.url()) && error.contains("refused"), "{error}");
    assert!(!a.0.borrow().answered());
    b.fail().await;
    server.start();
    a.see(&[1, 2]).await;
    b.see(&[1, 2]).await;

    server.stop();
    a.fail().await;
    b.fail().await;
    assert_eq!(a.0.borrow().addresses.len(), 2, "what was found stands");
    let mut c = look(at(3), &server.url(), "");
    c.fail().await;
    let failures = a.0.borrow().providers[0].failures;
    a.until("another failure", |view| view.providers[0].failures > failures + 1).await;
    server.start();
    for eyes in [&mut a, &mut b, &mut c] {
        eyes.see(&[1, 2, 3]).await;
    }
}

#[tokio::test]
async fn one_of_several_servers_is_enough() {
    let (away, server) = (NatsServer::new(&[]), NatsServer::started(&[]));
    let mut a = look_in(at(1), &format!("['{}', '{}']", away.url(), server.url()), "");
    let mut b = look_in(at(2), &format!("['{}', '{}']", server.url(), away.url()), "");
    a.see(&[1, 2]).await;
    b.see(&[1, 2]).await;
}

#[tokio::test]
async fn nats_password_logs_in_and_a_wrong_one_is_reported() {
    let server = NatsServer::started(&["--user", "kvasir", "--pass", "hush"]);
    let mut a = look(at(1), &server.url(), ", user: kvasir, password: hush");
    a.see(&[1]).await;
    for wrong in ["", ", user: kvasir, password: loud", ", token: hush"] {
        let mut b = look(at(2), &server.url(), wrong);
        let error = b.fail().await;
        assert!(error.contains("authorization violation"), "{error}");
        assert!(error.contains("check discovery.nats.user and password, token, or credentialsFile"), "{error}");
        assert!(!error.contains("hush") && !error.contains("loud"), "{error}");
    }
    assert_eq!(a.0.borrow().addresses.len(), 1);
}

#[tokio::test]
async fn a_token_in_a_file_may_change_with_the_server() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("token");
    let mut server = NatsServer::started(&["--auth", "first"]);
    let more = format!(", tokenFile: '{}'", file.display());
    let mut a = look(at(1), &server.url(), &more);
    let error = a.fail().await;
    assert!(error.contains("discovery.nats.tokenFile") && error.contains("token"), "{error}");
    std::fs::write(&file, "first\n").unwrap();
    a.see(&[1]).await;

    server.stop();
    server.flags = vec!["--auth".to_owned(), "second".to_owned()];
    server.start();
    a.until("a refusal", |view| {
        view.providers[0].error.as_ref().is_some_and(|error| error.contains("authorization violation"))
    })
    .await;
    std::fs::write(&file, "second").unwrap();
    a.see(&[1]).await;
}

/// A token in NATS' format: claims of `issuer` about `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &serde_json::Value) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": nats,
    });
    let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn nats_credentials_log_in_and_foreign_ones_do_not() {
    let folder = TempDir::new().unwrap();
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let of_operator = jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 }));
    let any = |kind: &str| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        json!({ "type": kind, "version": 2, "limits": limits, "subs": -1, "data": -1, "payload": -1 })
    };
    let of_account = jwt(&operator, &account, &any("account"));
    let conf = folder.path().join("nats.conf");
    let id = account.public_key();
    let text = format!("operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{ {id}: {of_account} }}\n");
    std::fs::write(&conf, text).unwrap();
    let server = NatsServer::started(&["-c", conf.to_str().unwrap()]);
    let credentials = |name: &str, account: &KeyPair| {
        let user = KeyPair::new_user();
        let path = folder.path().join(name);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(account, &user, &any("user")),
            user.seed().unwrap(),
        );
        std::fs::write(&path, text).unwrap();
        format!(", credentialsFile: '{}'", path.display())
    };
    look(at(1), &server.url(), &credentials("ours", &account)).see(&[1]).await;
    let error = look(at(2), &server.url(), &credentials("strange", &KeyPair::new_account())).fail().await;
    assert!(error.contains("authorization violation"), "{error}");
    let error = look(at(2), &server.url(), ", credentialsFile: /nowhere/creds").fail().await;
    assert!(error.contains("discovery.nats.credentialsFile: cannot use /nowhere/creds"), "{error}");
}

#[tokio::test]
async fn nats_reports_a_missing_permission() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("nats.conf");
    let text =
        "authorization { users: [{ user: u, password: p, permissions: { publish: \">\", subscribe: \"_INBOX.>\" } }] }";
    std::fs::write(&file, text).unwrap();
    let server = NatsServer::started(&["-c", file.to_str().unwrap()]);
    let mut a = look(at(1), &server.url(), ", user: u, password: p");
    let error = a.fail().await;
    assert!(error.contains("the server reports") && error.to_lowercase().contains("permissions"), "{error}");
    assert!(error.contains("kvasir.test"), "{error}");
}

#[tokio::test]
async fn tls_is_checked_against_the_authority_that_is_given() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let issued = ca.issue("nats", &["127.0.0.1"], 2098);
    let files = [("ca", &ca.pem), ("other", &other.pem), ("cert", &issued.certificate), ("key", &issued.key)];
    for (name, text) in files {
        std::fs::write(path(name), text).unwrap();
    }
    let server = NatsServer::started(&["--tls", "--tlscert", &path("cert"), "--tlskey", &path("key")]);
    let url = server.url().replace("nats://", "tls://");
    look(at(1), &url, &format!(", caFile: '{}'", path("ca"))).see(&[1]).await;
    let error = look(at(2), &url, &format!(", caFile: '{}'", path("other"))).fail().await;
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = look(at(2), &url, &format!(", caFile: '{}'", path("none"))).fail().await;
    assert!(error.contains("No such file"), "{error}");
    // A provider that requires TLS never talks in plain text.
    let plain = NatsServer::started(&[]);
    let url = plain.url().replace("nats://", "tls://");
    look(at(1), &url, &format!(", caFile: '{}', timeout: 1s", path("ca"))).fail().await;
}
