//! `kvasir-node`: reads the settings, runs a node until it is told to stop.
//! `kvasir-node dev` runs a whole cluster for trying.
//!
//! Exit codes: 0 after a drain, 1 when the node could not run, 2 when the
//! settings are wrong.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;
use kvasir_node::config::{Cli, Command, Config, DevSettings, LogConfig, LogFormat};
use kvasir_node::descriptors;
use kvasir_node::dev::DevCluster;
use kvasir_node::memory;
use kvasir_node::node::{Node, NodeError, Speaks};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// musl's own allocator takes a lock for every allocation, and keeps what was freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The settings are wrong.
const BAD_CONFIG: u8 = 2;
/// For tests alone: the version of the protocol that the node speaks on links, and in membership datagrams, so that it is
/// to its peers what a node of another release would be.
const LINKS_VERSION: &str = "KVASIR_TEST_LINKS_VERSION";
const DATAGRAMS_VERSION: &str = "KVASIR_TEST_DATAGRAMS_VERSION";

fn main() -> ExitCode {
    // Answers `--help` and wrong flags itself, as command line tools do (exit code 0 and 2).
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
    match speaks() {
        Ok(speaks) => finish(&config.log.clone(), run(speaks, config)),
        Err(error) => bad_config(&error),
    }
}

fn speaks() -> Result<Speaks, String> {
    let version = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().map_err(|error| format!("{name}: {text:?} is no version: {error}")),
        Err(_) => Ok(default),
    };
    let Speaks { links, datagrams } = Speaks::default();
    Ok(Speaks { links: version(LINKS_VERSION, links)?, datagrams: version(DATAGRAMS_VERSION, datagrams)? })
}

/// Runs to the end, with the log that is asked for.
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

/// There is no log yet: a line for whoever started the process.
fn bad_config(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("kvasir-node: {error}");
    ExitCode::from(BAD_CONFIG)
}

fn start_log(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|error| format!("logLevel: {error}; give error, warn, info, debug or trace, or target=level pairs"))?;
    // The NATS client tells of every attempt that fails; discovery tells of it once.
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

async fn run(speaks: Speaks, mut config: Config) -> anyhow::Result<()> {
    descriptors::fit(&mut config.client_port, &mut config.peer_port);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    if speaks != Speaks::default() {
        warn!(links = speaks.links, datagrams = speaks.datagrams, "speaks other versions of the protocols, for a test");
    }
    let mut node = Node::start_speaking(speaks, config, Vec::new()).await?;
    tokio::select! {
        failure = node.failed() => {
            // The others need not find out that it went, and may lack what it held.
            if matches!(failure, NodeError::NameTaken { .. }) {
                node.shutdown().await;
            }
            return Err(failure.into());
        }
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

async fn dev(settings: DevSettings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let began = Instant::now();
    let mut cluster = DevCluster::start(&settings).await?;
    tokio::select! {
        () = cluster.ready() => {}
        _ = told(&mut terminate, &mut interrupt) => return Ok(()),
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
    println!("Ctrl-C ends them, and what they hold.");
    tokio::select! {
        failure = cluster.failed() => return Err(failure.into()),
        _ = told(&mut terminate, &mut interrupt) => {}
    }
    cluster.stop().await;
    Ok(())
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
