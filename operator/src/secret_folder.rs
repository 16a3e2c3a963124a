//! Files of a Secret in a container: a volume, and where it is mounted.

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};

/// A volume of such files of a Secret, each as its key and its name; nothing else of the Secret is in it.
pub(crate) fn volume<'a>(name: &str, secret: &str, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Volume {
    let item = |(key, path): (&str, &str)| KeyToPath { key: key.to_owned(), path: path.to_owned(), mode: None };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(files.into_iter().map(item).collect()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Where that volume is. As a folder: a single file that is mounted would never change.
pub(crate) fn mount(name: &str, folder: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: folder.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}
