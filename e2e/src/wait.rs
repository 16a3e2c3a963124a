//! Waiting for a cluster to get somewhere. Knows nothing of Kubernetes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// A bound that a sound cluster on a busy machine stays far below.
pub const GENEROUS: Duration = Duration::from_mins(3);

/// Looks until there is an answer; after [`GENEROUS`] it fails, with the last reason that was given.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(GENEROUS, what, look).await
}

/// Looks until there is an answer; after `bound` it fails, with the last reason that was given.
pub async fn within<T>(bound: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if began.elapsed() > bound => {
                bail!("gave up waiting for {what} after {} s: {reason:#}", began.elapsed().as_secs())
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
