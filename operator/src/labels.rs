//! The names by which objects of a cluster are found, and by which this operator is known.
//!
//! Knows nothing of what the objects are.

use std::collections::BTreeMap;

/// Field manager of everything that this operator applies, and the value of `app.kubernetes.io/managed-by`.
pub const OPERATOR: &str = "kvasir-operator";
/// Label of everything that belongs to a cluster; by itself the selector of its member pods.
pub const MEMBER_OF: &str = "kvasir.dev/member-of";
/// Label that says who looks after an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Annotation of a `KvCluster` that takes a loss of data out of its Degraded condition: `status.data.lost.foundedAt`.
pub const ACKNOWLEDGE_DATA_LOSS: &str = "kvasir.dev/acknowledge-data-loss";
/// Annotation on applied objects: a hash of what was last applied.
pub const APPLIED: &str = "kvasir.dev/applied";
/// Annotation on the pod template: a hash of the node's configuration, so that a change of it restarts the pods.
pub const CONFIG_HASH: &str = "kvasir.dev/config-hash";

/// Labels of every object of a cluster.
pub fn all(cluster: &str) -> BTreeMap<String, String> {
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

/// [`selector`] as the API server takes it in a query.
pub fn selector_text(cluster: &str) -> String {
    format!("{MEMBER_OF}={cluster}")
}
