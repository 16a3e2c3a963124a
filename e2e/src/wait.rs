//! Waiting for a cluster to reach a state. Knows nothing of Kubernetes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// A bound that a healthy cluster on a busy machine stays far below.
pub const GENEROUS: Duration = Duration::from_mins(3);

/// Retries until there is an answer; after [`GENEROUS`] it fails with the last reason.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(GENEROUS, what, look).await
}

/// Retries until there is an answer; after `bound` it fails with the last reason.
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
