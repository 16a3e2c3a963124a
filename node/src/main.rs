//! `kvasir-node`: reads the settings and runs a node until SIGTERM or SIGINT. `kvasir-node dev` runs a whole cluster in
//! one process.
//!
//! Exit codes: 0 after a drain, 1 if the node could not run, 2 if the settings are wrong.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;
use kvasir_node::config::{Cli, Command, Config, DevSettings, LogConfig, LogFormat};
use kvasir_node::descriptors;
use kvasir_node::dev::DevCluster;
use kvasir_node::memory;
use kvasir_node::node::{Node, NodeError, ProtocolVersions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// musl's allocator takes a lock for every allocation, and does not return freed memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for wrong settings.
const BAD_CONFIG: u8 = 2;
/// Only for tests: the protocol versions on links and in membership datagrams, so that a node looks to its peers like
/// one of another release.
const LINKS_VERSION: &str = "KVASIR_TEST_LINKS_VERSION";
const DATAGRAMS_VERSION: &str = "KVASIR_TEST_DATAGRAMS_VERSION";

fn main() -> ExitCode {
    // Handles `--help` and wrong flags itself, with exit codes 0 and 2.
    let mut cli = Cli::parse();
    if let Some(Command::Dev(settings)) = cli.command.take() {
        return finish(&LogConfig { level: settings.log_level.clone(), format: LogFormat::Text }, dev(settings));
    }
    let print = cli.print_config;
    let config = match Config::from_cli(cli).and_then(|config| config.within(memory::limit())) {
        Ok(config) => config,
        Err(error) => return bad_config(&error),
    };
    if print {
        print!("{}", config.to_yaml());
        return ExitCode::SUCCESS;
    }
    match versions() {
        Ok(versions) => finish(&config.log.clone(), run(versions, config)),
        Err(error) => bad_config(&error),
    }
}

fn versions() -> Result<ProtocolVersions, String> {
    let version = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().map_err(|error| format!("{name}: {text:?} is not a version: {error}")),
        Err(_) => Ok(default),
    };
    let ProtocolVersions { links, datagrams } = ProtocolVersions::default();
    Ok(ProtocolVersions { links: version(LINKS_VERSION, links)?, datagrams: version(DATAGRAMS_VERSION, datagrams)? })
}

/// Starts the log and runs `work` to its end.
fn finish(log: &LogConfig, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    if let Err(error) = start_log(log) {
        return bad_config(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start threads");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the error to standard error, as there is no log yet.
fn bad_config(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("kvasir-node: {error}");
    ExitCode::from(BAD_CONFIG)
}

fn start_log(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|error| format!("logLevel: {error}; set error, warn, info, debug or trace, or target=level pairs"))?;
    // The NATS client logs every failed attempt; discovery logs the failure once.
    let quiet = "async_nats=off".parse().map_err(|error| format!("logLevel: {error}"))?;
    let filter = if config.level.contains("async_nats") { filter } else { filter.add_directive(quiet) };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn run(versions: ProtocolVersions, mut config: Config) -> anyhow::Result<()> {
    descriptors::fit(&mut config.client_port, &mut config.peer_port);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    if versions != ProtocolVersions::default() {
        let ProtocolVersions { links, datagrams } = versions;
        warn!(links, datagrams, "uses other protocol versions than this release, for a test");
    }
    let mut node = Node::start_versions(versions, config, Vec::new()).await?;
    tokio::select! {
        failure = node.failed() => {
            // Leaves properly: peers may lack what the node holds, and need not wait for a failure to be detected.
            if matches!(failure, NodeError::NameTaken { .. }) {
                node.shutdown().await;
            }
            return Err(failure.into());
        }
        signal = shutdown_signal(&mut terminate, &mut interrupt) => info!(signal, "received a shutdown signal"),
    }
    tokio::select! {
        () = node.shutdown() => Ok(()),
        // A second signal ends the node at once.
        signal = shutdown_signal(&mut terminate, &mut interrupt) => {
            warn!(signal, "received a second shutdown signal: ends without waiting for the peers");
            anyhow::bail!("the drain was cut short")
        }
    }
}

async fn dev(settings: DevSettings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let began = Instant::now();
    let mut cluster = DevCluster::start(&settings).await?;
    tokio::select! {
        () = cluster.ready() => {}
        _ = shutdown_signal(&mut terminate, &mut interrupt) => return Ok(()),
    }
    let addresses = cluster.addresses();
    println!("{} nodes are ready after {} ms\n", addresses.len(), began.elapsed().as_millis());
    println!("NAME     CLIENT (gRPC)     PEER              ADMIN (HTTP)");
    for (name, at) in &addresses {
        println!("{name:<8} {:<17} {:<17} {}", at.client.to_string(), at.peer.to_string(), at.admin);
    }
    if let [(_, first), ..] = &addresses[..] {
        println!("\nTry: kvctl --address {} put greeting hello", first.client);
    }
    println!("Ctrl-C stops the nodes and discards their data.");
    tokio::select! {
        failure = cluster.failed() => return Err(failure.into()),
        _ = shutdown_signal(&mut terminate, &mut interrupt) => {}
    }
    cluster.stop().await;
    Ok(())
}

/// Waits for a shutdown signal, and returns its name.
async fn shutdown_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
