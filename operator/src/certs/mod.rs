//! Certificates signed by an authority of our own, for the webhook and for the nodes of a cluster: what is due for renewal, and
//! how it is issued.
//!
//! Pure but for the randomness of keys: the time is an argument, so years pass in a test. [`secret`] stores certificates at the
//! API server; the rest knows nothing of that, or of sockets.
//!
//! A certificate is renewed after two thirds of its life. A new authority does not touch the serving certificate: it joins the
//! old one in the list of trusted authorities. It signs only when the serving certificate itself is due, at least a week later,
//! when all clients have read the new list. An authority leaves the list when it has expired, and then all certificates that it
//! signed have expired too. So at no moment during a renewal is a client shown a certificate whose authority it does not trust.

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
/// Lifetime of an authority.
pub const AUTHORITY_LIFE: i64 = 365 * DAY;
/// Lifetime of a serving certificate.
pub const SERVING_LIFE: i64 = 90 * DAY;
/// Certificates are backdated by this much, for API servers whose clock is behind ours.
const BACKDATED: i64 = HOUR;
/// How long a new authority is listed before it signs; it signs at once if no other authority is left.
const LISTED_FIRST: i64 = 7 * DAY;

/// What certificates are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The webhook presents them to the API server.
    Webhook,
    /// The nodes of a cluster present them to clients and to each other.
    Nodes,
}

/// Why a certificate could not be issued or used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A certificate could not be issued.
    #[error("cannot issue a certificate, check its names: {0}")]
    Make(#[from] rcgen::Error),
    /// The stored data is not a certificate with its key; a renewal replaces it.
    #[error("the stored certificate cannot be used and will be replaced: {0}")]
    Use(String),
}

/// What is stored: all as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The trusted authorities, newest first; for the webhook this is the API server's `caBundle`.
    pub authorities: String,
    /// Key of the newest authority.
    pub authority_key: String,
    /// The serving certificate.
    pub certificate: String,
    /// Key of the serving certificate.
    pub key: String,
}

/// Leaves out the keys.
impl std::fmt::Debug for Stored {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stored")
            .field("authorities", &self.authorities)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The validity of a certificate, in seconds since 1970.
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

    /// Whether two thirds of it have passed.
    fn is_due(self, now: i64) -> bool {
        now >= self.start + (self.end - self.start) / 3 * 2
    }

    fn is_over(self, now: i64) -> bool {
        now > self.end
    }
}

/// What the stored certificates are.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Findings {
    /// The authorities, newest first.
    pub authorities: Vec<Validity>,
    /// Whether the newest authority can sign: its key is stored.
    pub can_sign: bool,
    /// The serving certificate, if it can be parsed and its key is stored.
    pub serving: Option<Serving>,
}

/// What the serving certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its validity.
    pub validity: Validity,
    /// The DNS names on it.
    pub names: Vec<String>,
    /// The validity of the listed authority that signed it.
    pub signer: Option<Validity>,
}

/// What must be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// A new authority.
    pub authority: bool,
    /// A new serving certificate.
    pub serving: bool,
    /// A shorter list of authorities, without the expired ones.
    pub prune: bool,
}

impl Plan {
    /// Whether nothing must be renewed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Decides what must be renewed at `now` (seconds since 1970) for a service of these names.
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

/// Parses the stored certificates; those that cannot be parsed are left out.
pub fn inspect(stored: &Stored) -> Findings {
    let ders: Vec<_> = CertificateDer::pem_slice_iter(stored.authorities.as_bytes()).filter_map(Result::ok).collect();
    let authorities: Vec<X509Certificate<'_>> = ders.iter().filter_map(parse).collect();
    let serving_der = CertificateDer::from_pem_slice(stored.certificate.as_bytes()).ok();
    let serving = serving_der
        .as_ref()
        .and_then(parse)
        .filter(|certificate| owns(certificate, &stored.key))
        // Parsers of keys differ in what they accept: the one of TLS counts.
        .filter(|_| certified_key(stored).is_ok());
    Findings {
        // Its own signature verifies with its key, so the certificates that it signs will verify too.
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

/// The renewed certificates, and what was renewed; `None` if nothing is due.
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
    // Valid certificates are carried over unchanged, and nothing else is.
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

/// Validity and names of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its validity.
    pub validity: Validity,
    /// The DNS names on it.
    pub names: Vec<String>,
}

/// Parses the first certificate of a PEM.
pub fn leaf(pem: &str) -> Option<Leaf> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let certificate = parse(&der)?;
    Some(Leaf { validity: Validity::of(&certificate), names: dns_names(&certificate) })
}

/// Whether a PEM holds certificates, all of which can be parsed.
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

/// The certificates of a bundle, one PEM each.
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
