//! Follows the number of voters in the configuration file: the operator changes it there, so that scaling restarts no
//! node. No other setting is read again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::Settings;
use crate::engine::Engine;

/// How often the file is read. Polled, because Kubernetes replaces a mounted `ConfigMap` by switching a symbolic link,
/// which a watch of the file would miss.
const LOOK: Duration = Duration::from_secs(5);

/// Passes each new number of voters to the engine; `voters` is the first number.
pub(super) async fn follow(file: PathBuf, mut voters: usize, engine: Arc<Engine>) {
    let mut failing = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || Settings::from_file(&path).and_then(|file| file.voters()));
        let Ok(read) = read.await else { return };
        let error = read.as_ref().err().map(ToString::to_string);
        match read {
            Ok(now) if now != voters => {
                info!(before = voters, now, "the number of voters in the configuration file changed");
                engine.set_voters(now);
                voters = now;
            }
            // An error is logged once, not at each attempt.
            Err(error) if failing != Some(error.to_string()) => {
                warn!(%error, voters, "cannot read the number of voters from the configuration file, and keeps the current one");
            }
            Ok(_) | Err(_) => {}
        }
        failing = error;
    }
}
