//! The certificate of a cluster's nodes: where it is, what it is for, and how a container gets it.
//!
//! One for all nodes of a cluster: a sidecar holds every key as a member does, and who has the one may be the other.
//! [`keep`] is the part that looks at the Secret. Knows nothing of the rest of a pod.

pub mod keep;

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use kvasir_crds::{CertificateRef, IssuerRef, Tls};

use crate::{
    certs::secret::{AUTHORITIES, CERTIFICATE, KEY},
    resources::headless_service,
    secret_folder,
};

/// Name of the volume, in members' pods and in those of applications.
pub const VOLUME: &str = "kvasir-tls";
/// Where the certificate is in a node's container.
pub const CERTIFICATE_FILE: &str = "/etc/kvasir-tls/tls.crt";
/// Where its key is.
pub const KEY_FILE: &str = "/etc/kvasir-tls/tls.key";
/// Where the authorities of peers are.
pub const AUTHORITIES_FILE: &str = "/etc/kvasir-tls/ca.crt";

const FOLDER: &str = "/etc/kvasir-tls";

/// Who makes the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The operator.
    Operator,
    /// Somebody.
    Secret,
    /// An issuer of cert-manager.
    Issuer {
        /// Its name.
        name: String,
        /// Its kind.
        kind: String,
        /// The group of that kind.
        group: String,
    },
}

/// The certificate of a cluster's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTls {
    /// The Secret that it is in, in the cluster's namespace.
    pub secret: String,
    /// Who makes it.
    pub source: Source,
    /// Whether members show it to their clients.
    pub client: bool,
    /// Whether nodes show it to each other.
    pub peers: bool,
}

impl NodeTls {
    /// The certificate of the cluster of this name; nothing unless the spec says exactly one way, and a use for it.
    pub fn of(cluster: &str, spec: &Tls) -> Option<Self> {
        let Tls { operator, secret_ref, issuer_ref, client, peers } = spec;
        let (secret, source) = match (operator, secret_ref, issuer_ref) {
            (Some(_), None, None) => (format!("{cluster}-tls"), Source::Operator),
            (None, Some(CertificateRef { name }), None) => (name.clone(), Source::Secret),
            (None, None, Some(IssuerRef { name, kind, group })) => {
                let or = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
                let (kind, group) = (or(kind, "Issuer"), or(group, "cert-manager.io"));
                // Not the operator's Secret: a cluster may go from one to the other.
                (format!("{cluster}-issued-tls"), Source::Issuer { name: name.clone(), kind, group })
            }
            _ => return None,
        };
        let (client, peers) = (client.unwrap_or(true), peers.unwrap_or(false));
        (client || peers).then_some(Self { secret, source, client, peers })
    }

    /// The files as a volume; the key of the authority, which may lie beside them, is none of them.
    pub fn volume(&self) -> Volume {
        let names = [CERTIFICATE, KEY].into_iter().chain(self.peers.then_some(AUTHORITIES));
        secret_folder::volume(VOLUME, &self.secret, names.map(|name| (name, name)))
    }
}

/// Where that volume is.
pub fn mount() -> VolumeMount {
    secret_folder::mount(VOLUME, FOLDER)
}

/// The name by which nodes know each other's certificates; no two clusters have the same.
pub fn peer_name(cluster: &str, namespace: &str) -> String {
    format!("{}.{namespace}.svc", headless_service::name(cluster))
}

/// All names by which a member may be called, within its Kubernetes and through a forwarded port.
pub fn names(cluster: &str, namespace: &str) -> Vec<String> {
    let headless = headless_service::name(cluster);
    let hosts = [cluster.to_owned(), headless.clone(), format!("*.{headless}")];
    let full = |host: &String| {
        ["", &format!(".{namespace}"), &format!(".{namespace}.svc"), &format!(".{namespace}.svc.cluster.local")]
            .map(|domain| format!("{host}{domain}"))
    };
    hosts.iter().flat_map(full).chain(["localhost".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> Option<NodeTls> {
        NodeTls::of("demo", &serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn there_is_one_source_and_at_least_one_use() {
        let tls = of("{operator: {}}").unwrap();
        assert_eq!(
            (tls.secret.as_str(), tls.source, tls.client, tls.peers),
            ("demo-tls", Source::Operator, true, false)
        );
        let tls = of("{secretRef: {name: s}, client: false, peers: true}").unwrap();
        assert_eq!((tls.secret.as_str(), tls.source, tls.client, tls.peers), ("s", Source::Secret, false, true));
        let tls = of("{issuerRef: {name: i}}").unwrap();
        let issuer = |kind: &str, group: &str| Source::Issuer {
            name: "i".to_owned(),
            kind: kind.to_owned(),
            group: group.to_owned(),
        };
        assert_eq!((tls.secret.as_str(), tls.source), ("demo-issued-tls", issuer("Issuer", "cert-manager.io")));
        let tls = of("{issuerRef: {name: i, kind: K, group: g}}").unwrap();
        assert_eq!(tls.source, issuer("K", "g"));
        for wrong in ["{}", "{operator: {}, client: false}", "{operator: {}, secretRef: {name: s}}"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_authority_s_key_reaches_no_pod() {
        let files = |spec: &str| {
            let items = of(spec).unwrap().volume().secret.unwrap().items.unwrap();
            items.into_iter().map(|item| format!("{FOLDER}/{}", item.path)).collect::<Vec<_>>()
        };
        assert_eq!(files("{operator: {}}"), [CERTIFICATE_FILE, KEY_FILE]);
        assert_eq!(files("{operator: {}, peers: true}"), [CERTIFICATE_FILE, KEY_FILE, AUTHORITIES_FILE]);
        assert_eq!((mount().sub_path, mount().read_only), (None, Some(true)));
    }

    #[test]
    fn members_are_called_by_their_services_and_their_pods() {
        let names = names("demo", "shop");
        for name in [
            "demo",
            "demo.shop.svc",
            "demo.shop.svc.cluster.local",
            "*.demo-peers.shop.svc",
            "*.demo-peers.shop.svc.cluster.local",
            "localhost",
            &peer_name("demo", "shop"),
        ] {
            assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
        }
    }
}
