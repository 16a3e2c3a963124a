//! Years of renewals with simulated time, checked by the verifier of TLS clients.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};

use super::*;

/// 2026-11-01.
const START: i64 = 1_793_491_200;

fn names() -> Vec<String> {
    vec!["kvasir-webhook.kvasir-system.svc".into(), "kvasir-webhook.kvasir-system".into()]
}

fn renewed(stored: Option<&Stored>, now: i64) -> (Stored, Plan) {
    renew(stored, Purpose::Webhook, &names(), now).expect("made").expect("something was due")
}

/// Whether an API server that trusts `bundle` accepts `certificate`.
fn accepted(bundle: &str, certificate: &str, name: &str, now: i64) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&der, &[], &name, &[], now).map(|_| ()).map_err(|error| error.to_string())
}

fn count(bundle: &str) -> usize {
    bundle.matches(END_OF_CERTIFICATE).count()
}

#[test]
fn certs_start_with_a_full_set() {
    let (stored, plan) = renewed(None, START);
    assert_eq!(plan, Plan { authority: true, serving: true, prune: false });
    for name in names() {
        accepted(&stored.authorities, &stored.certificate, &name, START).unwrap();
    }
    accepted(&stored.authorities, &stored.certificate, "other.kvasir-system.svc", START).unwrap_err();
    // A clock that is half an hour behind does no harm.
    accepted(&stored.authorities, &stored.certificate, &names()[0], START - HOUR / 2).unwrap();
    certified_key(&stored).expect("usable for TLS");
    assert_eq!(renew(Some(&stored), Purpose::Webhook, &names(), START).unwrap(), None, "nothing is due right after");
}

#[test]
fn certs_are_renewed_after_two_thirds() {
    let (first, _) = renewed(None, START);
    assert_eq!(renew(Some(&first), Purpose::Webhook, &names(), START + 59 * DAY).unwrap(), None);
    let now = START + 60 * DAY;
    let (second, plan) = renewed(Some(&first), now);
    assert_eq!(plan, Plan { serving: true, ..Plan::default() });
    assert_eq!(second.authorities, first.authorities, "the bundle of the API server stays");
    assert_ne!(second.key, first.key);
    accepted(&first.authorities, &second.certificate, &names()[0], now).unwrap();
}

#[test]
fn certs_are_accepted_by_the_last_bundle_always() {
    let (mut stored, _) = renewed(None, START);
    let (mut authorities_made, mut served_made, mut longest) = (0, 0, 0);
    for day in 1..=3 * 365 {
        let now = START + day * DAY;
        let yesterday = stored.clone();
        if let Some((next, plan)) = renew(Some(&stored), Purpose::Webhook, &names(), now).unwrap() {
            authorities_made += usize::from(plan.authority);
            served_made += usize::from(plan.serving);
            stored = next;
        }
        // The API server's copy of the bundle may be a day old, and so may another replica's certificate.
        accepted(&yesterday.authorities, &stored.certificate, &names()[0], now)
            .unwrap_or_else(|error| panic!("day {day}: {error}"));
        accepted(&stored.authorities, &yesterday.certificate, &names()[0], now)
            .unwrap_or_else(|error| panic!("day {day}: {error}"));
        longest = longest.max(count(&stored.authorities));
        assert!(inspect(&stored).authorities.iter().all(|validity| !validity.is_over(now)), "day {day}");
    }
    assert_eq!(authorities_made, 4, "one in each 243 days");
    assert_eq!(served_made, 18, "one in each 60 days");
    assert_eq!(longest, 2, "the old authority leaves the list when it has ended");
}

#[test]
fn after_years_asleep_everything_is_new() {
    let (first, _) = renewed(None, START);
    let now = START + 5 * AUTHORITY_LIFE;
    let (second, plan) = renewed(Some(&first), now);
    assert_eq!(plan, Plan { authority: true, serving: true, prune: true });
    assert_eq!(count(&second.authorities), 1);
    accepted(&second.authorities, &second.certificate, &names()[0], now).unwrap();
}

#[test]
fn certs_replace_only_what_is_damaged() {
    let (good, _) = renewed(None, START);
    let plan_of = |stored: &Stored| renewed(Some(stored), START).1;
    let all = Plan { authority: true, serving: true, prune: false };
    let authority = Plan { authority: true, ..Plan::default() };
    let serving = Plan { serving: true, ..Plan::default() };
    assert_eq!(plan_of(&Stored { authority_key: "lost".into(), ..good.clone() }), authority);
    assert_eq!(plan_of(&Stored { key: good.authority_key.clone(), ..good.clone() }), serving);
    assert_eq!(plan_of(&Stored { certificate: "-----BEGIN".into(), ..good.clone() }), serving);
    assert_eq!(plan_of(&Stored { authorities: String::new(), ..good.clone() }), all);
    let (stranger, _) = renewed(None, START);
    let foreign = Stored { certificate: stranger.certificate, key: stranger.key, ..good.clone() };
    assert_eq!(plan_of(&foreign), serving, "signed by an authority that is not listed");
    // If the key of the authority is lost, what it signed stays in use.
    let (next, _) = renewed(Some(&Stored { authority_key: String::new(), ..good.clone() }), START);
    assert_eq!((next.certificate.as_str(), count(&next.authorities)), (good.certificate.as_str(), 2));
    accepted(&next.authorities, &next.certificate, &names()[0], START).unwrap();
}

#[test]
fn certs_follow_a_new_service_name() {
    let (first, _) = renewed(None, START);
    let renamed = vec!["hook.elsewhere.svc".to_owned()];
    let (second, plan) = renew(Some(&first), Purpose::Webhook, &renamed, START).unwrap().expect("due");
    assert_eq!(plan, Plan { serving: true, ..Plan::default() });
    accepted(&first.authorities, &second.certificate, "hook.elsewhere.svc", START).unwrap();
}

#[test]
fn keys_do_not_reach_the_log() {
    let (stored, _) = renewed(None, START);
    assert!(!format!("{stored:?}").contains("PRIVATE KEY"));
}

#[test]
fn certs_new_authority_does_not_sign_yet() {
    // The operator did not run when the certificate was due, and runs again when the authority is due too.
    let (first, _) = renewed(None, START);
    let (first, _) = renewed(Some(&first), START + 190 * DAY);
    let now = START + 255 * DAY;
    let (second, plan) = renewed(Some(&first), now);
    assert_eq!(plan, Plan { authority: true, ..Plan::default() });
    accepted(&first.authorities, &second.certificate, &names()[0], now).unwrap();
    assert_eq!(renew(Some(&second), Purpose::Webhook, &names(), now + 7 * DAY - 1).unwrap(), None);
    let (third, plan) = renewed(Some(&second), now + 7 * DAY);
    assert_eq!(plan, Plan { serving: true, ..Plan::default() });
    accepted(&second.authorities, &third.certificate, &names()[0], now + 7 * DAY).unwrap();
    accepted(&first.authorities, &third.certificate, &names()[0], now + 7 * DAY)
        .expect_err("signed by the new authority");
    // If the certificate has expired, the new authority signs at once.
    let (late, plan) = renewed(Some(&first), START + 281 * DAY);
    assert_eq!(plan, Plan { authority: true, serving: true, prune: false });
    accepted(&late.authorities, &late.certificate, &names()[0], START + 281 * DAY).unwrap();
}

#[test]
fn certs_of_nodes_serve_both_sides() {
    for (purpose, client) in [(Purpose::Webhook, false), (Purpose::Nodes, true)] {
        let (stored, _) = renew(None, purpose, &names(), START).unwrap().unwrap();
        let der = CertificateDer::from_pem_slice(stored.certificate.as_bytes()).unwrap();
        let certificate = parse(&der).unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.server_auth, usage.client_auth), (true, client), "{purpose:?}");
    }
}
