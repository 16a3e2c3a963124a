//! `kvasir-node`: reads the settings, runs a node until it is told to stop.
//!
//! Exit codes: 0 after a drain, 1 when the node could not run, 2 when the
//! settings are wrong.

use std::process::ExitCode;

use kvasir_node::config::{Config, LogConfig, LogFormat};
use kvasir_node::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// The settings are wrong.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => return bad_config(&error),
    };
    if let Err(error) = log(&config.log) {
        return bad_config(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start threads");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// There is no log yet: a line for whoever started the process.
fn bad_config(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("kvasir-node: {error}");
    ExitCode::from(BAD_CONFIG)
}

fn log(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|error| format!("logLevel: {error}; give error, warn, info, debug or trace, or target=level pairs"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut node = Node::start(config).await?;
    tokio::select! {
        failure = node.failed() => return Err(failure.into()),
        which = told(&mut terminate, &mut interrupt) => info!(signal = which, "was told to stop"),
    }
    tokio::select! {
        () = node.shutdown() => Ok(()),
        // Whoever asks twice means it.
        which = told(&mut terminate, &mut interrupt) => {
            warn!(signal = which, "was told to stop again: ends without waiting for the peers");
            anyhow::bail!("the drain was cut short")
        }
    }
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
