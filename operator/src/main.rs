//! The operator's program: reads its flags, starts the webhook, health and metrics and, while it leads, the controller, and stops
//! them on a signal.

use std::{io::IsTerminal, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use kube::Client;
use kvasir_operator::{
    api_server::{
        client,
        leader::{Candidate, Election, lease_name},
        watches::Watches,
    },
    metrics::Metrics,
    reconcile, server, webhook,
};
use prometheus_client::registry::Registry;
use semver::Version;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tracing_subscriber::EnvFilter;

/// Runs Kvasir clusters on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "kvasir-operator", version)]
struct Args {
    /// Image of members and sidecars if their `KvCluster` names none.
    #[arg(
        long,
        env = "KVASIR_NODE_IMAGE",
        default_value = concat!("kvasir.dev/kvasir:", env!("CARGO_PKG_VERSION")),
        value_name = "IMAGE"
    )]
    node_image: String,
    /// The `ClusterRole` that lets members have tokens reviewed; conditions name it if members lack it.
    #[arg(long, env = "KVASIR_TOKEN_REVIEW_ROLE", default_value = "kvasir-token-review", value_name = "NAME")]
    token_review_role: String,
    /// The only namespace whose `KvCluster`s are managed. Unset: all of them.
    #[arg(
        long,
        env = "KVASIR_WATCH_NAMESPACE",
        value_name = "NAMESPACE",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    watch_namespace: Option<String>,
    /// Namespace of the Lease that decides which of several operators leads.
    #[arg(long, env = "KVASIR_NAMESPACE", default_value = "kvasir-system", value_name = "NAMESPACE")]
    lease_namespace: String,
    /// Name of this operator among others, such as its pod's. Unset: made of host name and process ID.
    #[arg(
        long,
        env = "KVASIR_POD_NAME",
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    identity: Option<String>,
    /// Address of health and metrics.
    #[arg(long, env = "KVASIR_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Log level: error, warn, info, debug or trace, or a filter such as `info,kvasir_operator=debug`.
    #[arg(long, env = "KVASIR_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Log format.
    #[arg(long, env = "KVASIR_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: LogFormat,
    #[command(flatten)]
    webhook: webhook::Settings,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    start_log(&args)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another cryptography provider was installed before ring"))?;
    let client = client::connect().await.context("cannot find a Kubernetes API server: set KUBECONFIG")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node_image = args.node_image, "starting");
    let (stop, stopped) = watch::channel(false);
    let mut tasks = start(args, &client, &stopped)?;

    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = tasks.join_next() => ended,
    };
    stop.send_replace(true);
    if let Some(ended) = early {
        ended.context("a part of the operator failed")??;
        anyhow::bail!("a part of the operator ended before the shutdown signal");
    }
    tracing::info!("stopping");
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the operator failed")??;
    }
    Ok(())
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&args.log_level).context("--log-level is not a filter: set a level such as info")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Starts all parts of the operator; they end when `stopped` becomes true.
fn start(args: Args, client: &Client, stopped: &watch::Receiver<bool>) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let stopping = || turned(stopped.clone());
    let (metrics, monitor, watches) = (Metrics::default(), webhook::Monitor::default(), Watches::default());
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    monitor.register(&mut registry);
    watches.register(&mut registry);
    let me = Candidate {
        identity: args.identity.unwrap_or_else(identity),
        version: Version::parse(env!("CARGO_PKG_VERSION")).context("the version is not a semantic version")?,
    };
    let lease = lease_name(args.watch_namespace.as_deref());
    let election = Election::new(client.clone(), &args.lease_namespace, lease, me, watches.begin("Lease"));
    election.register(&mut registry);
    let not_ready = {
        let (watches, monitor, webhook) = (watches.clone(), monitor.clone(), args.webhook.enabled);
        move || {
            watches.broken().or_else(|| (webhook && !monitor.serving()).then(|| "the webhook is not served".to_owned()))
        }
    };

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let health = server::run(args.listen, registry, not_ready, stopping());
    tasks.spawn(async move { Ok(health.await?) });
    if args.webhook.enabled {
        let hook =
            webhook::run(args.webhook, client.clone(), args.node_image.clone(), monitor, watches.clone(), stopping());
        tasks.spawn(async move { Ok(hook.await?) });
    }
    let settings = reconcile::Settings {
        namespace: args.watch_namespace,
        node_image: args.node_image,
        token_review_role: args.token_review_role,
    };
    let fenced = client::fenced(client, election.permit());
    let context = Arc::new(reconcile::Context::new(fenced, settings, metrics, watches));
    let lead = election.run(move |stop| reconcile::run(context.clone(), turned(stop)), stopping());
    tasks.spawn(async move {
        lead.await;
        Ok(())
    });
    Ok(tasks)
}

/// Resolves once a signal is true, or its sender was dropped, which means that what it belonged to has ended.
async fn turned(mut signal: watch::Receiver<bool>) {
    drop(signal.wait_for(|turned| *turned).await);
}

/// A unique name for an operator that does not run in a pod.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    format!("{host}-{}", std::process::id())
}
