//! A certificate authority for tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// An authority with a certificate of its own.
pub struct Authority {
    /// The authority's certificate, PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// Makes an authority of that common name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be generated");
        let pem = params.self_signed(&key).expect("the parameters are constants and a name").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Issues a certificate for servers and clients that is valid until the end of `year`.
    pub fn issue(&self, common: &str, names: &[&str], year: i32) -> Issued {
        self.sign(common, names, |params| params.not_after = rcgen::date_time_ymd(year, 12, 31))
    }

    /// Issues a certificate for servers and clients that is valid for so many days from now.
    pub fn issue_for_days(&self, common: &str, names: &[&str], days: u32) -> Issued {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let end = now + Duration::from_hours(24) * days;
        self.sign(common, names, |params| params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end)
    }

    fn sign(&self, common: &str, names: &[&str], end: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("tests give names that a certificate can have");
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        end(&mut params);
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs what it made");
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
