//! The names that several parts of the operator share: labels, annotations, ports, paths in containers, and objects of a cluster.
//!
//! Knows nothing of the objects themselves.

use std::collections::BTreeMap;

use kvasir_formats::defaults;

/// Field manager of everything that the operator applies, and the value of `app.kubernetes.io/managed-by`.
pub const OPERATOR: &str = "kvasir-operator";
/// Label of all objects of a cluster; by itself the selector of the member pods.
pub const MEMBER_OF: &str = "kvasir.dev/member-of";
/// Label that says which program manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Annotation of a `KvCluster` that acknowledges a loss of data; its value is `status.data.lost.foundedAt`.
pub const ACKNOWLEDGE_DATA_LOSS: &str = "kvasir.dev/acknowledge-data-loss";
/// Annotation on applied objects: a hash of the object as last applied.
pub const APPLIED: &str = "kvasir.dev/applied";
/// Annotation on the pod template: a hash of the settings whose change must restart the members.
pub const CONFIG_HASH: &str = "kvasir.dev/config-hash";

/// Label of application pods: the `KvCluster`, in the pod's namespace, whose sidecar the pod gets.
pub const CLUSTER_LABEL: &str = "kvasir.dev/cluster";
/// Annotation that the webhook sets on a pod with an injected sidecar.
pub const INJECTED_ANNOTATION: &str = "kvasir.dev/injected";
/// Annotation by which a labelled pod declines its sidecar (`"false"`).
pub const INJECT_ANNOTATION: &str = "kvasir.dev/inject";
/// Prefix of this project's labels and annotations.
pub const PREFIX: &str = "kvasir.dev/";

/// Name of a node's container, in member pods and as a sidecar.
pub const CONTAINER: &str = "kvasir";

/// Port of the gRPC API.
pub const CLIENT_PORT: i32 = defaults::CLIENT_PORT as i32;
/// Port between nodes, TCP and UDP.
pub const PEER_PORT: i32 = defaults::PEER_PORT as i32;
/// Port of health, metrics and status.
pub const ADMIN_PORT: i32 = defaults::ADMIN_PORT as i32;
/// Name of [`CLIENT_PORT`] in pods and Services.
pub const CLIENT: &str = "client";
/// Name of [`PEER_PORT`] for TCP.
pub const PEER: &str = "peer";
/// Name of [`PEER_PORT`] for UDP.
pub const PEER_UDP: &str = "peer-udp";
/// Name of [`ADMIN_PORT`].
pub const ADMIN: &str = "admin";

/// Key of a Secret, and name of the file, with the authorities to trust.
pub const AUTHORITIES: &str = "ca.crt";
/// Key of a Secret with the key of the newest authority.
pub const AUTHORITY_KEY: &str = "ca.key";
/// Key of a Secret, and name of the file, with the certificate.
pub const CERTIFICATE: &str = "tls.crt";
/// Key of a Secret, and name of the file, with the certificate's key.
pub const KEY: &str = "tls.key";
/// Name of the file with cookie and keys, and the key of a Secret whose reference names none.
pub const ENCRYPTION_KEYS: &str = "peers.yaml";

/// Path of the encryption keys in a node's container.
pub const ENCRYPTION_FILE: &str = "/etc/kvasir-encryption/peers.yaml";
/// Path of the certificate in a node's container.
pub const CERTIFICATE_FILE: &str = "/etc/kvasir-tls/tls.crt";
/// Path of the certificate's key in a node's container.
pub const KEY_FILE: &str = "/etc/kvasir-tls/tls.key";
/// Path of the peers' authorities in a node's container.
pub const AUTHORITIES_FILE: &str = "/etc/kvasir-tls/ca.crt";
/// Path of the clients' tokens in a member's container.
pub const TOKENS_FILE: &str = "/etc/kvasir-access/tokens.yaml";
/// Path of the clients' authorities in a member's container.
pub const CLIENT_CA_FILE: &str = "/etc/kvasir-access/client-ca.crt";

/// Name of the Service under which members find each other and sidecars find members.
pub fn headless_service(cluster: &str) -> String {
    format!("{cluster}-peers")
}

/// Domain name of that Service; also the name on the certificate by which peers know each other. No two clusters share it.
pub fn peer_domain(cluster: &str, namespace: &str) -> String {
    format!("{}.{namespace}.svc", headless_service(cluster))
}

/// Labels of every object of a cluster.
pub fn labels(cluster: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "kvasir"),
        ("app.kubernetes.io/instance", cluster),
        ("app.kubernetes.io/component", "node"),
        (MANAGED_BY, OPERATOR),
        (MEMBER_OF, cluster),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels that select the member pods of a cluster.
pub fn selector(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(MEMBER_OF.to_owned(), cluster.to_owned())])
}

/// [`selector`] as a query of the API server.
pub fn selector_text(cluster: &str) -> String {
    format!("{MEMBER_OF}={cluster}")
}
