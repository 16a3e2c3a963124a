//! Certificates for tests, and files that are replaced as Kubernetes replaces those of a Secret.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for servers and clients, valid until the end of that year.
    pub(crate) fn issue(&self, common: &str, names: &[&str], year: i32) -> Issued {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// A directory of files, as a mounted Secret.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("..data", mounted.0.path().join("current")).unwrap();
        mounted.put(files);
        mounted
    }

    /// Replaces all files at once, by switching a symlink.
    pub(crate) fn put(&self, files: &[(&str, &str)]) {
        let name = format!("{:x}", rand::random::<u64>());
        let version = self.0.path().join(&name);
        std::fs::create_dir(&version).unwrap();
        for (file, text) in files {
            std::fs::write(version.join(file), text).unwrap();
        }
        let link = self.0.path().join("..new");
        std::os::unix::fs::symlink(name, &link).unwrap();
        std::fs::rename(link, self.0.path().join("..data")).unwrap();
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join("current").join(file)
    }

    pub(crate) fn text(&self, file: &str) -> String {
        self.path(file).to_str().unwrap().to_owned()
    }
}
