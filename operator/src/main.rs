//! The operator's program: reads its settings, starts the controller, the webhook and its own health, and stops them when
//! told to.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use clap::Parser;
use kube::Client;
use kvasir_operator::{controller, metrics::Metrics, server, webhook};
use prometheus_client::registry::Registry;
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
    let client = Client::try_default().await.context("cannot find a Kubernetes API server: set KUBECONFIG")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node_image = args.node_image, "starting");

    let (stop, stopped) = watch::channel(false);
    let stopping = || {
        let mut stopped = stopped.clone();
        // An error means that `stop` is gone, and with it the program.
        async move { drop(stopped.wait_for(|stopped| *stopped).await) }
    };
    let metrics = Metrics::default();
    let monitor = webhook::Monitor::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    monitor.register(&mut registry);
    let known = Arc::new(AtomicBool::new(false));
    let ready = {
        let (known, monitor, webhook) = (known.clone(), monitor.clone(), args.webhook.enabled);
        move || known.load(Ordering::Acquire) && (!webhook || monitor.serving())
    };

    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let health = server::run(args.listen, registry, ready, stopping());
    tasks.spawn(async move { Ok(health.await?) });
    if args.webhook.enabled {
        let hook = webhook::run(args.webhook, client.clone(), args.node_image.clone(), monitor, stopping());
        tasks.spawn(async move { Ok(hook.await?) });
    }
    let control = controller::run(
        controller::Context::new(client, args.watch_namespace, args.node_image, args.token_review_role, metrics),
        known,
        stopping(),
    );
    tasks.spawn(async move {
        control.await;
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
