//! What members need before they start: encryption keys, certificates, and what they need to authenticate clients.
//!
//! Each part checks the Secrets that the spec names, and creates those that the operator is asked to create. Knows nothing of
//! the objects that are applied afterwards.

pub mod access;
pub mod encryption;
pub mod tls;

use kube::Client;

use super::error::ReconcileError;
use crate::{
    cluster::ValidatedCluster,
    metrics::Metrics,
    obstacle::{Failure, Obstacle},
};

/// Why members cannot start.
pub struct Blocked {
    /// What the conditions say.
    pub obstacle: Obstacle,
    /// The error, if a retry may succeed.
    pub retry: Option<ReconcileError>,
}

impl<E: Failure + Into<ReconcileError>> From<E> for Blocked {
    fn from(error: E) -> Self {
        Self { obstacle: Obstacle::of(&error), retry: error.is_passing().then(|| error.into()) }
    }
}

/// Checks and creates the Secrets of a cluster; `has_members` is whether it ever had a `StatefulSet`.
///
/// Returns what a person should fix although members can start.
pub async fn prepare(
    client: &Client,
    metrics: &Metrics,
    cluster: &ValidatedCluster,
    has_members: bool,
    token_review_role: &str,
) -> Result<Option<Obstacle>, Blocked> {
    encryption::ensure(client, metrics, cluster, has_members).await?;
    tls::ensure(client, metrics, cluster).await?;
    Ok(access::check(client, cluster, token_review_role).await?)
}
