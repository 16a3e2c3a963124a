//! The expiry and the names of certificates.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// How many names of one certificate are used.
const MAX_NAMES: usize = 64;

/// When a certificate expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Milliseconds since 1970.
    pub not_after_ms: u64,
}

/// When the current certificates expire, by use. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Expiries(Arc<Mutex<BTreeMap<&'static str, Expiry>>>);

impl Expiries {
    /// Each use with its certificate's expiry.
    pub fn read(&self) -> BTreeMap<&'static str, Expiry> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, of: &'static str, expiry: Expiry) {
        self.0.lock().insert(of, expiry);
    }
}

/// When the first certificate of a chain expires.
pub fn not_after(chain: &[CertificateDer<'_>]) -> Result<Expiry, String> {
    let mut first = u64::MAX;
    for der in chain {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| format!("cannot read a certificate: {error}"))?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        first = first.min(seconds.saturating_mul(1000));
    }
    Ok(Expiry { not_after_ms: first })
}

/// The names of a certificate: its common name, and the DNS names, URIs and mail addresses among its subject alternative names.
pub fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let others = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some((*name).to_owned()),
        _ => None,
    });
    let mut names = Vec::new();
    for name in common.chain(others).take(MAX_NAMES) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
