//! The Secret with the keys that nodes encrypt with among themselves: where it is, and how a container gets it.
//!
//! Members and sidecars get the same, as a mounted file; [`keep`] is the part that looks at the Secret. Knows nothing of
//! the rest of a pod.

pub mod keep;

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use kvasir_crds::{Encryption, KeyFileRef};

use crate::secret_folder;

/// Name of the volume, in members' pods and in those of applications.
pub const VOLUME: &str = "kvasir-encryption";
/// Where the file is in a node's container.
pub const FILE: &str = "/etc/kvasir-encryption/peers.yaml";

const FOLDER: &str = "/etc/kvasir-encryption";
/// Name of the file, and of the key in a Secret whose reference names none.
const NAME: &str = "peers.yaml";

/// Which key of which Secret holds the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Name of the Secret, in the cluster's namespace.
    pub secret: String,
    /// Key in it.
    pub key: String,
    /// Whether the operator makes the Secret.
    pub generate: bool,
}

impl KeyFile {
    /// Where the keys of the cluster of this name are; nothing unless the spec says exactly one way.
    pub fn of(cluster: &str, spec: &Encryption) -> Option<Self> {
        match spec {
            Encryption { secret_ref: Some(KeyFileRef { name, key }), generate: None | Some(false) } => Some(Self {
                secret: name.clone(),
                key: key.clone().unwrap_or_else(|| NAME.to_owned()),
                generate: false,
            }),
            Encryption { secret_ref: None, generate: Some(true) } => {
                Some(Self { secret: format!("{cluster}-encryption"), key: NAME.to_owned(), generate: true })
            }
            Encryption { .. } => None,
        }
    }

    /// The file as a volume.
    pub fn volume(&self) -> Volume {
        secret_folder::volume(VOLUME, &self.secret, [(self.key.as_str(), NAME)])
    }
}

/// Where that volume is.
pub fn mount() -> VolumeMount {
    secret_folder::mount(VOLUME, FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Option<KeyFile> {
        KeyFile::of("demo", &serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn the_secret_is_somebody_s_or_the_operator_s() {
        let file = |secret: &str, key: &str, generate| {
            Some(KeyFile { secret: secret.to_owned(), key: key.to_owned(), generate })
        };
        assert_eq!(of("{generate: true}"), file("demo-encryption", "peers.yaml", true));
        assert_eq!(of("{secretRef: {name: s}}"), file("s", "peers.yaml", false));
        assert_eq!(of("{secretRef: {name: s, key: k}, generate: false}"), file("s", "k", false));
        for neither in ["{}", "{generate: false}", "{secretRef: {name: s}, generate: true}"] {
            assert_eq!(of(neither), None, "{neither}");
        }
    }

    #[test]
    fn only_the_file_is_mounted_and_in_a_way_that_follows_changes() {
        let volume = of("{secretRef: {name: s, key: k}}").unwrap().volume();
        let secret = volume.secret.unwrap();
        let item = &secret.items.unwrap()[0];
        assert_eq!((secret.secret_name.as_deref(), item.key.as_str(), item.path.as_str()), (Some("s"), "k", NAME));
        let mount = mount();
        assert_eq!((mount.name.as_str(), mount.read_only, mount.sub_path), (VOLUME, Some(true), None));
        assert_eq!(FILE, format!("{}/{NAME}", mount.mount_path));
    }
}
