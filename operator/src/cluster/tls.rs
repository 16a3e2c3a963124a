//! The certificate of a cluster's nodes: where it is, which program issues it, and what it is for.
//!
//! All nodes of a cluster share one certificate. A sidecar holds every key just as a member does, so separate certificates would
//! not protect anything.

use kvasir_crds::{CertificateRef, IssuerRef, Tls};

use crate::names;

/// The source of the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The operator issues it.
    Operator,
    /// The user puts it into the Secret.
    Secret,
    /// cert-manager requests it from an issuer.
    Issuer {
        /// Name of the issuer.
        name: String,
        /// Kind of the issuer.
        kind: String,
        /// API group of that kind.
        group: String,
    },
}

/// The certificate of a cluster's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTls {
    /// The Secret with the certificate, in the cluster's namespace.
    pub secret: String,
    /// The source of the certificate.
    pub source: Source,
    /// Whether members present it to clients.
    pub client: bool,
    /// Whether nodes present it to each other.
    pub peers: bool,
}

impl NodeTls {
    /// The certificate of the cluster of this name; `None` unless the spec has exactly one source and at least one use.
    pub fn of(cluster: &str, spec: &Tls) -> Option<Self> {
        let Tls { operator, secret_ref, issuer_ref, client, peers } = spec;
        let (secret, source) = match (operator, secret_ref, issuer_ref) {
            (Some(_), None, None) => (format!("{cluster}-tls"), Source::Operator),
            (None, Some(CertificateRef { name }), None) => (name.clone(), Source::Secret),
            (None, None, Some(IssuerRef { name, kind, group })) => {
                let or = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
                let (kind, group) = (or(kind, "Issuer"), or(group, "cert-manager.io"));
                // Not the name of the operator's Secret: a cluster may change from one source to the other.
                (format!("{cluster}-issued-tls"), Source::Issuer { name: name.clone(), kind, group })
            }
            _ => return None,
        };
        let (client, peers) = (client.unwrap_or(true), peers.unwrap_or(false));
        (client || peers).then_some(Self { secret, source, client, peers })
    }

    /// The keys of the Secret that a node needs. The authority's private key, which may be in the same Secret, is not among them.
    pub fn files(&self) -> impl Iterator<Item = &'static str> + use<> {
        [names::CERTIFICATE, names::KEY].into_iter().chain(self.peers.then_some(names::AUTHORITIES))
    }
}

/// All DNS names of the members, inside Kubernetes and through a forwarded port.
pub fn dns_names(cluster: &str, namespace: &str) -> Vec<String> {
    let headless = names::headless_service(cluster);
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
    fn tls_has_one_source_and_at_least_one_use() {
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
    fn tls_names_cover_services_and_pods() {
        let names = dns_names("demo", "shop");
        for name in [
            "demo",
            "demo.shop.svc",
            "demo.shop.svc.cluster.local",
            "*.demo-peers.shop.svc",
            "*.demo-peers.shop.svc.cluster.local",
            "localhost",
            &crate::names::peer_domain("demo", "shop"),
        ] {
            assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
        }
    }
}
