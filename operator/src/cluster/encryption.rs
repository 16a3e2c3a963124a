//! Which Secret holds the keys that the nodes of a cluster encrypt with.

use kvasir_crds::{Encryption, KeyFileRef};

use crate::names;

/// The Secret with the encryption keys, and the key in it that holds the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Name of the Secret, in the cluster's namespace.
    pub secret: String,
    /// Key in the Secret.
    pub key: String,
    /// Whether the operator creates the Secret.
    pub generate: bool,
}

impl KeyFile {
    /// The key file of the cluster of this name; `None` unless the spec names exactly one source.
    pub fn of(cluster: &str, spec: &Encryption) -> Option<Self> {
        let default_key = || names::ENCRYPTION_KEYS.to_owned();
        match spec {
            Encryption { secret_ref: Some(KeyFileRef { name, key }), generate: None | Some(false) } => {
                let key = key.clone().unwrap_or_else(default_key);
                Some(Self { secret: name.clone(), key, generate: false })
            }
            Encryption { secret_ref: None, generate: Some(true) } => {
                Some(Self { secret: format!("{cluster}-encryption"), key: default_key(), generate: true })
            }
            Encryption { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Option<KeyFile> {
        KeyFile::of("demo", &serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn encryption_has_exactly_one_source() {
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
}
