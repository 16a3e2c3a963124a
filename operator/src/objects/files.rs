//! Secrets as files in a node's container: the volumes, and where they are mounted.
//!
//! Members and sidecars get the same volumes. Each volume is mounted as a directory, because a single mounted file never follows
//! a change of its Secret. Only the keys that a node needs are in a volume.

use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, SecretProjection, SecretVolumeSource, Volume, VolumeMount, VolumeProjection,
};
use kvasir_crds::{Access, SecretKey};

use crate::{
    cluster::{access, encryption::KeyFile, tls::NodeTls},
    names::ENCRYPTION_KEYS,
};

/// Volume with the encryption keys.
pub const ENCRYPTION: &str = "kvasir-encryption";
/// Volume with the certificate.
pub const TLS: &str = "kvasir-tls";
/// Volume with what members need to authenticate clients.
pub const ACCESS: &str = "kvasir-access";

/// A volume and its mount.
pub struct Files {
    /// The volume of the pod.
    pub volume: Volume,
    /// Its mount in the node's container.
    pub mount: VolumeMount,
}

/// The encryption keys.
pub fn encryption(file: &KeyFile) -> Files {
    let volume = secret(ENCRYPTION, &file.secret, [(file.key.as_str(), ENCRYPTION_KEYS)]);
    Files { volume, mount: mount(ENCRYPTION, "/etc/kvasir-encryption") }
}

/// The certificate with its key, and the authorities of peers if nodes need them.
pub fn tls(tls: &NodeTls) -> Files {
    let volume = secret(TLS, &tls.secret, tls.files().map(|name| (name, name)));
    Files { volume, mount: mount(TLS, "/etc/kvasir-tls") }
}

/// What members need to authenticate clients; `None` if that takes no Secret.
pub fn access(access: &Access) -> Option<Files> {
    projected(ACCESS, "/etc/kvasir-access", access::secrets(access).map(|(key, path)| (key, file_name(path))))
}

/// Keys of several Secrets in one volume; `None` if there are none.
pub fn projected<'a>(
    name: &str,
    directory: &str,
    keys: impl Iterator<Item = (&'a SecretKey, &'a str)>,
) -> Option<Files> {
    let sources: Vec<_> = keys
        .map(|(SecretKey { name, key }, file)| VolumeProjection {
            secret: Some(SecretProjection { name: name.clone(), items: Some(vec![item(key, file)]), optional: None }),
            ..VolumeProjection::default()
        })
        .collect();
    (!sources.is_empty()).then(|| Files {
        volume: Volume {
            name: name.to_owned(),
            projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
            ..Volume::default()
        },
        mount: mount(name, directory),
    })
}

fn secret<'a>(name: &str, secret: &str, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(keys.into_iter().map(|(key, file)| item(key, file)).collect()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn item(key: &str, file: &str) -> KeyToPath {
    KeyToPath { key: key.to_owned(), path: file.to_owned(), mode: None }
}

/// A read-only mount of a volume.
pub fn mount(name: &str, directory: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: directory.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::validate::tests::valid, names};

    /// The keys of a volume, each with its path in the container.
    fn paths(files: &Files) -> Vec<(String, String)> {
        let (secret, projected) = (files.volume.secret.clone(), files.volume.projected.clone());
        let items = secret.into_iter().flat_map(|secret| secret.items.unwrap());
        let sources = projected.into_iter().flat_map(|projected| projected.sources.unwrap());
        let projected = sources.flat_map(|source| source.secret.unwrap().items.unwrap());
        let path = |item: KeyToPath| (item.key, format!("{}/{}", files.mount.mount_path, item.path));
        items.chain(projected).map(path).collect()
    }

    fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(key, path)| ((*key).to_owned(), (*path).to_owned())).collect()
    }

    #[test]
    fn files_of_encryption_are_one_key() {
        let file = valid("{encryption: {secretRef: {name: s, key: k}}}").encryption.unwrap();
        let files = encryption(&file);
        assert_eq!(files.volume.secret.as_ref().unwrap().secret_name.as_deref(), Some("s"));
        assert_eq!(paths(&files), owned(&[("k", names::ENCRYPTION_FILE)]));
        assert_eq!((files.mount.name.as_str(), files.mount.read_only), (ENCRYPTION, Some(true)));
        assert_eq!(files.mount.sub_path, None, "a single mounted file would not follow changes");
    }

    /// The authority's private key reaches no pod.
    #[test]
    fn files_of_tls_leave_out_the_authority_key() {
        let files = |spec: &str| paths(&tls(&valid(spec).tls.unwrap()));
        let pair = [("tls.crt", names::CERTIFICATE_FILE), ("tls.key", names::KEY_FILE)];
        assert_eq!(files("{tls: {operator: {}}}"), owned(&pair));
        let all = [pair[0], pair[1], ("ca.crt", names::AUTHORITIES_FILE)];
        assert_eq!(files("{tls: {operator: {}, peers: true}}"), owned(&all));
    }

    #[test]
    fn files_of_access_are_those_that_are_named() {
        let files = |spec: &str| access(&valid(spec).access.unwrap()).map(|files| paths(&files));
        let spec =
            "{tls: {operator: {}}, access: {tokensSecret: {name: s, key: t}, clientCaSecret: {name: s, key: ca}}}";
        assert_eq!(files(spec), Some(owned(&[("t", names::TOKENS_FILE), ("ca", names::CLIENT_CA_FILE)])));
        assert_eq!(files("{access: {serviceAccounts: {}}}"), None);
    }
}
