//! The content of the webhook's Secret, which any user with access to it may have changed.

use kvasir_operator::certs::{self, Purpose, Stored};

use crate::input::{Input, chunk};

/// Some moment.
const NOW: i64 = 1_790_000_000;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut text = || String::from_utf8_lossy(input.chunk()).into_owned();
    let stored = Stored { authorities: text(), authority_key: text(), certificate: text(), key: text() };
    let names = ["kvasir-webhook.kvasir-system.svc".to_owned()];
    let renewed =
        certs::renew(Some(&stored), Purpose::Webhook, &names, NOW).expect("whatever is stored can be replaced");
    let stored = renewed.map_or(stored, |(next, _)| next);
    // The certificate was valid before, or was renewed.
    certs::certified_key(&stored).expect("the certificate, kept or renewed, can be served");
    assert_eq!(
        certs::renew(Some(&stored), Purpose::Webhook, &names, NOW).expect("nothing to do"),
        None,
        "a renewed certificate is renewed again"
    );
    let findings = certs::inspect(&stored);
    assert!(findings.can_sign && findings.serving.is_some_and(|it| it.signer.is_some()), "the parts do not fit");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let names = ["kvasir-webhook.kvasir-system.svc".to_owned()];
    let made = |now| {
        certs::renew(None, Purpose::Webhook, &names, now).expect("certificates can be made").expect("there were none").0
    };
    let (good, other, old) = (made(NOW), made(NOW), made(NOW - 80 * 86_400));
    let of = |parts: [&str; 4]| parts.map(|part| chunk(part.as_bytes())).concat();
    let both = format!("{}{}", good.authorities, other.authorities);
    let all = |it: &Stored| of([&it.authorities, &it.authority_key, &it.certificate, &it.key]);
    vec![
        all(&good),
        all(&old),
        of([&both, &good.authority_key, &good.certificate, &good.key]),
        of([&good.authorities, &good.authority_key, &good.certificate, &other.key]),
        of([&good.authorities, &other.authority_key, &other.certificate, &other.key]),
        of(["", "", &good.certificate, &good.key]),
    ]
}
