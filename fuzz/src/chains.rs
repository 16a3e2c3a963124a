//! What the node reads from certificates of clients or files: the names and the expiry. The operator reads the same
//! certificates.

use k8s_openapi::ByteString;
use kvasir_node::tls;
use kvasir_operator::certs::{self, Purpose};
use serde_json::json;

use crate::input::{Input, chunk};

/// The most names in one certificate.
const MAX_NAMES: usize = 64;
/// The most certificates in a chain.
const LONGEST: usize = 4;
/// The bytes before a common name.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut chain = vec![input.chunk()];
    while !input.is_empty() && chain.len() < LONGEST {
        chain.push(input.chunk());
    }
    let ends: Option<Vec<u64>> = chain.iter().map(|der| one(der)).collect();
    let chain: Vec<_> = chain.into_iter().map(Into::into).collect();
    let end = tls::not_after(&chain).ok().map(|expiry| expiry.not_after_ms);
    assert_eq!(end, ends.and_then(|ends| ends.into_iter().min()), "a chain ends with the first of its certificates");
}

/// The expiry, if the bytes are a certificate.
fn one(der: &[u8]) -> Option<u64> {
    let names = tls::names(&der.into());
    let end = tls::not_after(&[der.into()]).ok().map(|expiry| expiry.not_after_ms);
    assert!(names.len() <= MAX_NAMES, "{} names", names.len());
    assert!(end.is_some() || names.is_empty(), "{names:?} are of no certificate");
    for (at, name) in names.iter().enumerate() {
        assert!(!name.is_empty() && !names[..at].contains(name), "{name:?} of {names:?}");
        assert!(holds(der, name.as_bytes()), "{name:?} is not in the certificate");
    }
    let leaf = certs::leaf(&pem(der));
    let seen = leaf.as_ref().map(|leaf| u64::try_from(leaf.validity.end).unwrap_or(0) * 1000);
    assert_eq!(end, seen, "node and operator do not see the same end");
    if most_names(der) <= MAX_NAMES {
        for name in leaf.iter().flat_map(|leaf| &leaf.names) {
            assert!(name.is_empty() || names.contains(name), "{name:?} is not one of {names:?}");
        }
    }
    end
}

fn holds(der: &[u8], name: &[u8]) -> bool {
    der.windows(name.len()).any(|part| part == name)
}

/// An upper bound for the number of names: counts every byte that may start a name.
fn most_names(der: &[u8]) -> usize {
    let alternative = |byte: &&u8| **byte >> 6 == 2 && matches!(**byte & 0x1f, 1 | 2 | 6 | 0x1f);
    der.iter().filter(alternative).count() + der.windows(COMMON_NAME.len()).filter(|part| *part == COMMON_NAME).count()
}

fn pem(der: &[u8]) -> String {
    let text = json!(ByteString(der.to_vec()));
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", text.as_str().expect("base64"))
}

/// The inverse, for one certificate.
fn der(pem: &str) -> Vec<u8> {
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    serde_json::from_value::<ByteString>(json!(text)).expect("a PEM is base64").0
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const NOW: i64 = 1_790_000_000;
    const NAME: &str = "demo.shop.svc.kvasir.internal";
    let made = |names: &[&str], now| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let stored = certs::renew(None, Purpose::Nodes, &names, now).expect("certificates can be made");
        let stored = stored.expect("there were none").0;
        (der(&stored.certificate), der(&stored.authorities))
    };
    let (leaf, authority) = made(&[NAME, "demo", "*.demo", "10.0.0.1"], NOW);
    let many: Vec<_> = (0..70).map(|n| format!("n{n}")).collect();
    let (many, _) = made(&many.iter().map(String::as_str).collect::<Vec<_>>(), NOW);
    // After 2050 a time has another encoding.
    let (late, _) = made(&[NAME, NAME], 3_000_000_000);
    // Another kind of name: the byte before a name's length determines the kind.
    let at = leaf.windows(NAME.len()).position(|part| part == NAME.as_bytes()).expect("it has the name") - 2;
    let kind = |kind: u8| {
        let mut other = leaf.clone();
        other[at] = kind;
        chunk(&other)
    };
    let (uri, mail) = (kind(0x86), kind(0x81));
    vec![
        [chunk(&leaf), chunk(&authority)].concat(),
        [chunk(&late), chunk(&leaf), chunk(&authority), chunk(&authority)].concat(),
        chunk(&many),
        uri,
        mail,
        [chunk(&leaf), chunk(b"no certificate")].concat(),
    ]
}
