//! Certificates of an authority of our own, for the webhook and for the nodes of a cluster: what must be made anew, and the
//! making of it.
//!
//! Pure but for the keys' randomness: the time is an argument, so years pass in a test. [`secret`] keeps them at the API
//! server; the rest knows nothing of that, or of sockets.
//!
//! An authority of our own signs the serving certificate. When two thirds of a certificate's life are over it is made
//! anew. A new authority does not touch the serving certificate: it joins the old one in the list of those to trust,
//! and signs only when the serving certificate's own time comes, at least a week later, when everyone
//! has long read the list. The old authority leaves the list when it has ended, and with it everything that it signed. So
//! neither renewal has a moment in which somebody trusts one and is shown the other.

pub mod secret;

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

const END_OF_CERTIFICATE: &str = "-----END CERTIFICATE-----";
const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;
/// How long an authority lives.
pub const AUTHORITY_LIFE: i64 = 365 * DAY;
/// How long a serving certificate lives.
pub const SERVING_LIFE: i64 = 90 * DAY;
/// Certificates begin this long ago, for API servers whose clock is behind ours.
const BACKDATED: i64 = HOUR;
/// How long a new authority is only listed before it signs, unless nothing else is left.
const LISTED_FIRST: i64 = 7 * DAY;

/// Whose certificates they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The webhook's, which the API server is shown.
    Webhook,
    /// Those of a cluster's nodes, which clients are shown, and peers in both directions.
    Nodes,
}

/// Why no certificate could be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// Making one failed.
    #[error("cannot make a certificate, check its names: {0}")]
    Make(#[from] rcgen::Error),
    /// What is stored is no certificate with its key; a renewal replaces it.
    #[error("the stored certificate cannot be used, it will be made anew: {0}")]
    Use(String),
}

/// What is kept: everything as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The authorities to trust, the newest first; for the webhook the API server's `caBundle`.
    pub authorities: String,
    /// Key of the newest authority.
    pub authority_key: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Names the fields and keeps the keys to itself.
impl std::fmt::Debug for Stored {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stored")
            .field("authorities", &self.authorities)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub start: i64,
    /// The last second.
    pub end: i64,
}

impl Validity {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { start: validity.not_before.timestamp(), end: validity.not_after.timestamp() }
    }

    /// Whether two thirds of it are over.
    fn is_due(self, now: i64) -> bool {
        now >= self.start + (self.end - self.start) / 3 * 2
    }

    fn is_over(self, now: i64) -> bool {
        now > self.end
    }
}

/// What the stored certificates are found to be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Findings {
    /// The authorities, the newest first.
    pub authorities: Vec<Validity>,
    /// Whether the newest authority can sign: its key is there.
    pub can_sign: bool,
    /// The serving certificate, if it can be read and its key is there.
    pub serving: Option<Serving>,
}

/// What the serving certificate is found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its life.
    pub validity: Validity,
    /// The DNS names on it.
    pub names: Vec<String>,
    /// The life of the listed authority that signed it.
    pub signer: Option<Validity>,
}

/// What must be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// A new authority.
    pub authority: bool,
    /// A new serving certificate.
    pub serving: bool,
    /// A shorter list of authorities, without those that have ended.
    pub prune: bool,
}

impl Plan {
    /// Whether all can stay as it is.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Decides what must be made anew at `now` (seconds since 1970) for a service of these names.
pub fn plan(findings: &Findings, names: &[String], now: i64) -> Plan {
    let newest = findings.authorities.first();
    let authority = !findings.can_sign || newest.is_none_or(|validity| validity.is_due(now));
    let known = !authority && newest.is_some_and(|newest| now >= newest.start + BACKDATED + LISTED_FIRST);
    let serving = findings.serving.as_ref().is_none_or(|serving| {
        (serving.validity.is_due(now) && known)
            || serving.validity.is_over(now)
            || serving.signer.is_none_or(|signer| signer.is_over(now))
            || names.iter().any(|name| !serving.names.contains(name))
    });
    let prune = findings.authorities.iter().any(|validity| validity.is_over(now));
    Plan { authority, serving, prune }
}

/// Reads what is stored; what cannot be read is not found.
pub fn inspect(stored: &Stored) -> Findings {
    let ders: Vec<_> = CertificateDer::pem_slice_iter(stored.authorities.as_bytes()).filter_map(Result::ok).collect();
    let authorities: Vec<X509Certificate<'_>> = ders.iter().filter_map(parse).collect();
    let serving_der = CertificateDer::from_pem_slice(stored.certificate.as_bytes()).ok();
    let serving = serving_der
        .as_ref()
        .and_then(parse)
        .filter(|certificate| owns(certificate, &stored.key))
        // Readers of keys differ in what they overlook: it is the one of TLS that counts.
        .filter(|_| certified_key(stored).is_ok());
    Findings {
        // What it signs can be verified with it as it is stored, which its own signature shows.
        can_sign: authorities.first().is_some_and(|newest| {
            owns(newest, &stored.authority_key) && newest.verify_signature(Some(newest.public_key())).is_ok()
        }),
        serving: serving.map(|certificate| Serving {
            validity: Validity::of(&certificate),
            names: dns_names(&certificate),
            signer: authorities
                .iter()
                .find(|authority| certificate.verify_signature(Some(authority.public_key())).is_ok())
                .map(Validity::of),
        }),
        authorities: authorities.iter().map(Validity::of).collect(),
    }
}

/// What to store instead of `stored`, and why; nothing if all can stay as it is.
pub fn renew(
    stored: Option<&Stored>,
    purpose: Purpose,
    names: &[String],
    now: i64,
) -> Result<Option<(Stored, Plan)>, CertError> {
    let findings = stored.map(inspect).unwrap_or_default();
    let plan = plan(&findings, names, now);
    if plan.is_empty() {
        return Ok(None);
    }
    let mut next = stored.cloned().unwrap_or_else(|| Stored {
        authorities: String::new(),
        authority_key: String::new(),
        certificate: String::new(),
        key: String::new(),
    });
    // Only certificates are carried over, and each of them as it was.
    next.authorities = blocks(&next.authorities).filter(|block| is_valid_still(block, now)).collect();
    if plan.authority {
        let key = KeyPair::generate()?;
        let certificate = authority_params(purpose, now).self_signed(&key)?;
        next.authorities.insert_str(0, &certificate.pem());
        next.authority_key = key.serialize_pem();
    }
    if plan.serving {
        let newest = CertificateDer::from_pem_slice(next.authorities.as_bytes())
            .map_err(|error| CertError::Use(error.to_string()))?;
        let end = parse(&newest).map_or(now, |authority| Validity::of(&authority).end);
        let issuer = Issuer::from_ca_cert_der(&newest, KeyPair::from_pem(&next.authority_key)?)?;
        let key = KeyPair::generate()?;
        next.certificate = serving_params(purpose, names, now, end)?.signed_by(&key, &issuer)?.pem();
        next.key = key.serialize_pem();
    }
    Ok(Some((next, plan)))
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its life.
    pub validity: Validity,
    /// The DNS names on it.
    pub names: Vec<String>,
}

/// Reads the first certificate of a PEM.
pub fn leaf(pem: &str) -> Option<Leaf> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let certificate = parse(&der)?;
    Some(Leaf { validity: Validity::of(&certificate), names: dns_names(&certificate) })
}

/// Whether a PEM holds certificates, and each can be read.
pub fn are_certificates(pem: &str) -> bool {
    let read: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    !read.is_empty() && read.iter().all(|der| der.as_ref().is_ok_and(|der| parse(der).is_some()))
}

/// The serving certificate with its key, for TLS.
pub fn certified_key(stored: &Stored) -> Result<CertifiedKey, CertError> {
    let unusable = |error: &dyn std::fmt::Display| CertError::Use(error.to_string());
    let certificate =
        CertificateDer::from_pem_slice(stored.certificate.as_bytes()).map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_slice(stored.key.as_bytes()).map_err(|error| unusable(&error))?;
    CertifiedKey::from_der(vec![certificate], key, &rustls::crypto::ring::default_provider())
        .map_err(|error| unusable(&error))
}

fn authority_params(purpose: Purpose, now: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(match purpose {
        Purpose::Webhook => "kvasir webhook authority",
        Purpose::Nodes => "kvasir cluster authority",
    });
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now - BACKDATED, now - BACKDATED + AUTHORITY_LIFE);
    params
}

fn serving_params(
    purpose: Purpose,
    names: &[String],
    now: i64,
    authority_end: i64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.distinguished_name, params.extended_key_usages) = match purpose {
        Purpose::Webhook => (common_name("kvasir webhook"), vec![ExtendedKeyUsagePurpose::ServerAuth]),
        Purpose::Nodes => {
            (common_name("kvasir node"), vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
        }
    };
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, now - BACKDATED, (now - BACKDATED + SERVING_LIFE).min(authority_end));
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_life(params: &mut CertificateParams, start: i64, end: i64) {
    let at = |seconds: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    params.not_before = at(start);
    params.not_after = at(end);
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// The certificates of a bundle, each as its own PEM.
fn blocks(bundle: &str) -> impl Iterator<Item = String> {
    bundle.split_inclusive(END_OF_CERTIFICATE).map(|block| format!("{}\n", block.trim()))
}

fn is_valid_still(block: &str, now: i64) -> bool {
    let der = CertificateDer::from_pem_slice(block.as_bytes()).ok();
    der.as_ref().and_then(parse).is_some_and(|certificate| !Validity::of(&certificate).is_over(now))
}

fn owns(certificate: &X509Certificate<'_>, key: &str) -> bool {
    KeyPair::from_pem(key).is_ok_and(|key| key.der_bytes() == &*certificate.public_key().subject_public_key.data)
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests;
