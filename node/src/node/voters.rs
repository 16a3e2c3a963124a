//! How many members the cluster is meant to have may change while a node runs:
//! the operator writes it into the configuration file, and scaling restarts
//! nothing. No other setting is taken from a changed file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::Settings;
use crate::engine::Engine;

/// How often the file is looked at: a mounted `ConfigMap` is exchanged whole,
/// by way of links, which no watch on the file itself would see.
const LOOK: Duration = Duration::from_secs(5);

/// Tells the engine whenever the file says another number than it had, which
/// was `voters` at first.
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
                info!(before = voters, now, "the configuration file gives another number of voters");
                engine.set_voters(now);
                voters = now;
            }
            // What is wrong with the file is said once.
            Err(error) if failing != Some(error.to_string()) => {
                warn!(%error, voters, "cannot take the number of voters from the changed configuration file");
            }
            Ok(_) | Err(_) => {}
        }
        failing = error;
    }
}
