//! The operator's program: reads its settings, starts the webhook, its own health and, while it leads, the controller, and
//! stops them when told to.

use std::{io::IsTerminal, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use kvasir_operator::{
    client, controller,
    leader::{Candidate, Election, lease_name},
    metrics::Metrics,
    server,
    watches::Watches,
    webhook,
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
    /// Image of members and sidecars whose `KvCluster` names none.
    #[arg(
        long,
        env = "KVASIR_NODE_IMAGE",
        default_value = concat!("kvasir.dev/kvasir:", env!("CARGO_PKG_VERSION")),
        value_name = "IMAGE"
    )]
    node_image: String,
    /// The `ClusterRole` that lets members have tokens reviewed, to be named where it is missing.
    #[arg(long, env = "KVASIR_TOKEN_REVIEW_ROLE", default_value = "kvasir-token-review", value_name = "NAME")]
    token_review_role: String,
    /// The only namespace whose `KvCluster`s are looked after. Unset: all of them.
    #[arg(
        long,
        env = "KVASIR_WATCH_NAMESPACE",
        value_name = "NAMESPACE",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    watch_namespace: Option<String>,
    /// Namespace of the Lease by which several operators agree on one that leads.
    #[arg(long, env = "KVASIR_NAMESPACE", default_value = "kvasir-system", value_name = "NAMESPACE")]
    lease_namespace: String,
    /// Name of this operator among others: its pod's. Unset: of this host and process.
    #[arg(
        long,
        env = "KVASIR_POD_NAME",
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    identity: Option<String>,
    /// Address on which health and metrics are served.
    #[arg(long, env = "KVASIR_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What is logged: error, warn, info, debug or trace, or a filter such as `info,kvasir_operator=debug`.
    #[arg(long, env = "KVASIR_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// How it is logged.
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
    let filter = EnvFilter::try_new(&args.log_level).context("--log-level is no filter: set a level such as info")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another cryptography provider was installed before ring"))?;
    let client = client::connect().await.context("cannot find a Kubernetes API server: set KUBECONFIG")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node_image = args.node_image, "starting");

    let (stop, stopped) = watch::channel(false);
    let stopping = || turned(stopped.clone());
    let metrics = Metrics::default();
    let monitor = webhook::Monitor::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    monitor.register(&mut registry);
    let watches = Watches::default();
    watches.register(&mut registry);
    let me = Candidate {
        identity: args.identity.unwrap_or_else(identity),
        version: Version::parse(env!("CARGO_PKG_VERSION")).context("the release is no semantic version")?,
    };
    let lease = lease_name(args.watch_namespace.as_deref());
    let election = Election::new(client.clone(), &args.lease_namespace, lease, me, watches.begin("Lease"));
    election.register(&mut registry);
    let not_ready = {
        let (watches, monitor, webhook) = (watches.clone(), monitor.clone(), args.webhook.enabled);
        move || {
            watches.deaf().or_else(|| (webhook && !monitor.serving()).then(|| "the webhook is not served".to_owned()))
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
    let context = Arc::new(controller::Context::new(
        client::fenced(&client, election.permit()),
        args.watch_namespace,
        args.node_image,
        args.token_review_role,
        metrics,
        watches,
    ));
    let lead = election.run(move |stop| controller::run(context.clone(), turned(stop)), stopping());
    tasks.spawn(async move {
        lead.await;
        Ok(())
    });

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
        anyhow::bail!("a part of the operator ended before it was told to");
    }
    tracing::info!("stopping");
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the operator failed")??;
    }
    Ok(())
}

/// Resolves once a signal is true. That its sender is gone counts as well: so is what it belonged to.
async fn turned(mut signal: watch::Receiver<bool>) {
    drop(signal.wait_for(|turned| *turned).await);
}

/// A name that no other operator has, outside of a pod.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
    format!("{host}-{}", std::process::id())
}
