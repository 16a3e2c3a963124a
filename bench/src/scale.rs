//! Three node processes with many keys, each in a network namespace behind a bridge: what they send when idle, when a node
//! joins, and when a node was cut off; and how long writes take under load. `scripts/bench-scale` makes the namespaces.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use kvasir_proto::v1::kv_client::KvClient;
use kvasir_proto::v1::pipe_request::Operation;
use kvasir_proto::v1::{PipeRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::load::{self, Outcome, Pipe, Work, put};
use crate::node::{Node, Start};
use crate::report::{Report, number, quantile, table, whole};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The `kvasir-node` to measure
    #[arg(long, default_value = "target/x86_64-unknown-linux-musl/release/kvasir-node")]
    node: PathBuf,
    /// How many keys the nodes hold
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// How often each figure is measured; the report has the median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these figures: `idle`, `join`, `repair` or `load`
    #[arg(long, default_value = "")]
    only: String,
}

const VALUE: usize = 64;
const DIFFERING: u64 = 10_000;
/// More own writes than a node keeps in its log.
const BEYOND_THE_LOG: u64 = 70_000;
const WINDOW: usize = 64;
/// How many writes per second are watched on all nodes: watching costs much more than writing.
const PROBES_A_SECOND: f64 = 1_000.0;
/// Puts per second of a light load.
const LIGHT: f64 = 2_000.0;
const PROBES: u64 = 1 << 20;
/// The headers of Ethernet, IPv4, and TCP with timestamps.
const TCP_HEADERS: f64 = 14.0 + 20.0 + 32.0;
/// The headers of Ethernet, IPv4, and UDP.
const UDP_HEADERS: f64 = 14.0 + 20.0 + 8.0;
const NAMES: [&str; 3] = ["kv1", "kv2", "kv3"];

fn key(n: u64) -> String {
    format!("bench/key-{n:08}")
}

struct Cluster {
    program: PathBuf,
    nodes: Vec<Node>,
}

impl Cluster {
    fn start_node(program: &std::path::Path, place: usize) -> anyhow::Result<Node> {
        let address = |n: u8| [10, 97, 0, n + 1];
        let peers = (0..3).map(|n| format!("10.97.0.{}:7071", n + 1)).collect::<Vec<_>>().join(",");
        Node::start(Start {
            program,
            name: NAMES[place],
            address: address(place as u8).into(),
            namespace: Some(NAMES[place]),
            flags: vec!["--voters=3".into(), format!("--discovery-static-hosts={peers}")],
        })
    }

    async fn start(program: &std::path::Path) -> anyhow::Result<Self> {
        let mut nodes = (0..3).map(|place| Self::start_node(program, place)).collect::<Result<Vec<_>, _>>()?;
        for node in &mut nodes {
            node.ready().await?;
        }
        let cluster = Self { program: program.to_owned(), nodes };
        for node in &cluster.nodes {
            node.until("linked", |status| linked(status) == 2).await?;
        }
        Ok(cluster)
    }

    /// Waits until all nodes hold the same. Returns how long that took.
    async fn equal(&self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let mut fingerprints = Vec::new();
            for node in &self.nodes {
                fingerprints.push(node.status().await?["fingerprint"].clone());
            }
            if fingerprints.iter().all(|f| *f == fingerprints[0]) {
                return Ok(began.elapsed());
            }
            anyhow::ensure!(began.elapsed() < Duration::from_mins(2), "the nodes do not become equal");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn linked(status: &serde_json::Value) -> usize {
    status["peers"].as_array().map_or(0, |peers| peers.iter().filter(|p| p["linked"] == true).count())
}

/// The counters of an interface.
struct Traffic {
    bytes_in: u64,
    packets_in: u64,
    bytes_out: u64,
}

/// Traffic that a node has sent (in) and received (out) as the bridge sees it, with the headers of all layers.
fn traffic(name: &str) -> anyhow::Result<Traffic> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    let fields: Vec<u64> =
        line.context("no such interface")?.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    anyhow::ensure!(fields.len() >= 9, "/proc/net/dev has another form");
    Ok(Traffic { bytes_in: fields[0], packets_in: fields[1], bytes_out: fields[8] })
}

/// How many bytes were sent between the third node and the others.
fn to_third() -> anyhow::Result<u64> {
    let (a, b) = (traffic(NAMES[0])?, traffic(NAMES[1])?);
    Ok(a.bytes_in + a.bytes_out + b.bytes_in + b.bytes_out)
}

fn link(name: &str, state: &str) -> anyhow::Result<()> {
    let status = std::process::Command::new("ip").args(["link", "set", name, state]).status()?;
    anyhow::ensure!(status.success(), "ip link set {name} {state} failed");
    Ok(())
}

/// Figures, each with its samples.
#[derive(Default)]
struct Figures(Vec<(String, String, Vec<f64>, &'static str)>);

impl Figures {
    fn add(&mut self, name: &str, goal: &str, unit: &'static str, value: f64) {
        eprintln!("{name}: {value:.2} {unit}");
        match self.0.iter_mut().find(|f| f.0 == name) {
            Some(figure) => figure.2.push(value),
            None => self.0.push((name.into(), goal.into(), vec![value], unit)),
        }
    }

    fn table(&self) -> String {
        let rows = self.0.iter().map(|(name, goal, samples, unit)| {
            let mut sorted = samples.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let show = |v: f64| if v < 100.0 { format!("{v:.2} {unit}") } else { format!("{} {unit}", number(v)) };
            vec![
                name.clone(),
                show(sorted[(sorted.len() - 1) / 2]),
                format!("{} to {}", show(sorted[0]), show(sorted[sorted.len() - 1])),
                goal.clone(),
            ]
        });
        table(&["", "median", "seen", "goal"], &rows.collect::<Vec<_>>())
    }
}

pub(crate) async fn run(options: &Options) -> anyhow::Result<Report> {
    anyhow::ensure!(traffic(NAMES[2]).is_ok(), "no interface {}: run scripts/bench-scale", NAMES[2]);
    let mut figures = Figures::default();
    let mut cluster = Cluster::start(&options.node).await?;
    let began = Instant::now();
    cluster.nodes[0].fill(0, options.keys, |n| (key(n), vec![b'v'; VALUE])).await?;
    let filled = began.elapsed();
    cluster.equal().await?;
    figures.add("fill one node, all equal", "", "keys/s", options.keys as f64 / began.elapsed().as_secs_f64());
    eprintln!("filled one in {filled:?}, all in {:?}", began.elapsed());
    let wanted = |name: &str| name.contains(&options.only);
    for _ in 0..options.rounds {
        if wanted("idle") {
            idle(&cluster, &mut figures).await?;
        }
        if wanted("join") {
            join(&mut cluster, options.keys, &mut figures).await?;
        }
        if wanted("repair") {
            repair(&cluster, options, &mut figures, "repair, by the log", 0).await?;
            repair(&cluster, options, &mut figures, "repair, beyond the log", BEYOND_THE_LOG).await?;
        }
        if wanted("load") {
            under_load(&cluster, options, &mut figures).await?;
        }
    }
    let (node, resident) = (&cluster.nodes[0], cluster.nodes[0].resident()? as f64);
    figures.add("memory of a node", "", "MB", resident / 1e6);
    figures.add("memory of a node: accounted", "", "MB", node.metric("kvasir_memory_bytes").await? / 1e6);
    Ok(Report { name: "scale", text: figures.table() })
}

async fn idle(cluster: &Cluster, figures: &mut Figures) -> anyhow::Result<()> {
    const TIME: u64 = 10;
    // Earlier steps may still cause traffic, such as a delta that both other nodes send.
    loop {
        let before = to_third()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        if to_third()? - before < 100_000 {
            break;
        }
        eprintln!("not idle yet");
    }
    // Scrapes are traffic as well: one before and one after the measurement.
    let before = membership(cluster).await?;
    let (wire_before, worked) = (wire()?, cluster.nodes[0].cpu_time()?);
    tokio::time::sleep(Duration::from_secs(TIME)).await;
    let (wire_after, worked) = (wire()?, cluster.nodes[0].cpu_time()?.saturating_sub(worked));
    let after = membership(cluster).await?;
    let each = |before: [f64; 2], after: [f64; 2]| [0, 1].map(|n| (after[n] - before[n]) / TIME as f64 / 3.0);
    let ([bytes, packets], [swim, datagrams]) = (each(wire_before, wire_after), each(before, after));
    let headers = UDP_HEADERS * datagrams + TCP_HEADERS * (packets - datagrams);
    figures.add("idle: sent by a node, all layers' headers included", "1 KB/s", "B/s", bytes);
    figures.add("idle: sent by a node, without the headers", "1 KB/s", "B/s", bytes - headers);
    figures.add("idle: of that, membership's datagrams", "", "B/s", swim);
    figures.add("idle: processor time of a node", "", "ms/s", worked.as_secs_f64() * 1e3 / TIME as f64);
    Ok(())
}

/// The bytes, with headers, and the packets that all nodes sent.
fn wire() -> anyhow::Result<[f64; 2]> {
    let mut sum = [0.0; 2];
    for name in NAMES {
        let wire = traffic(name)?;
        sum = [sum[0] + wire.bytes_in as f64, sum[1] + wire.packets_in as f64];
    }
    Ok(sum)
}

/// The bytes, without headers, and the datagrams that membership sent on all nodes.
async fn membership(cluster: &Cluster) -> anyhow::Result<[f64; 2]> {
    let mut sum = [0.0; 2];
    for node in &cluster.nodes {
        sum[0] += node.metric("kvasir_membership_bytes_total{direction=\"out\"}").await?;
        sum[1] += node.metric("kvasir_membership_datagrams_total{direction=\"out\"}").await?;
    }
    Ok(sum)
}

/// The `n`th of many puts under existing keys, in a pseudorandom order.
fn put_anywhere(n: u64, keys: u64) -> Operation {
    put(key(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys), VALUE)
}

/// Puts at two nodes for one second, one at a time at each.
async fn two_put([first, second]: [KvClient<Channel>; 2], keys: u64) -> anyhow::Result<Outcome> {
    let work: Work = Arc::new(move |n| put_anywhere(n, keys));
    let puts = |kv| load::unary(kv, 1, Duration::from_secs(1), work.clone());
    let (mut both, other) = tokio::try_join!(puts(first), puts(second))?;
    both.add(other);
    Ok(both)
}

async fn join(cluster: &mut Cluster, keys: u64, figures: &mut Figures) -> anyhow::Result<()> {
    cluster.nodes[2].kill()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let kvs = [cluster.nodes[0].kv().await?, cluster.nodes[1].kv().await?];
    let mut alone = two_put(kvs.clone(), keys).await?;
    figures.add("put at the two others while the third is gone, p99", "", "ms", alone.took_us(0.99) as f64 / 1e3);
    let others = [cluster.nodes[0].cpu_time()?, cluster.nodes[1].cpu_time()?];
    let before = to_third()?;
    let began = Instant::now();
    cluster.nodes[2] = Cluster::start_node(&cluster.program, 2)?;
    cluster.nodes[2].ready().await?;
    let took = began.elapsed();
    let bytes = to_third()? - before;
    let worked = [cluster.nodes[0].cpu_time()?, cluster.nodes[1].cpu_time()?];
    let sponsor = worked.iter().zip(others).map(|(now, then)| now.saturating_sub(then)).max().unwrap_or_default();
    figures.add("cold join, from the start of the process to ready", "3 s", "s", took.as_secs_f64());
    figures.add("cold join: processor time of the new node", "", "s", cluster.nodes[2].cpu_time()?.as_secs_f64());
    figures.add("cold join: processor time of the node that it asked", "", "s", sponsor.as_secs_f64());
    figures.add("cold join: sent for it", "", "MB", bytes as f64 / 1e6);
    figures.add("cold join: the most memory that the new node took", "", "MB", cluster.nodes[2].peak()? as f64 / 1e6);
    cluster.equal().await?;
    // The third node joins once more, while clients write to the other two.
    cluster.nodes[2].kill()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.nodes[2] = Cluster::start_node(&cluster.program, 2)?;
    let mut meanwhile = two_put(kvs, keys).await?;
    figures.add("put at the two others while the third joins, p99", "", "ms", meanwhile.took_us(0.99) as f64 / 1e3);
    figures.add(
        "put at the two others while the third joins, the longest",
        "",
        "ms",
        meanwhile.took_us(1.0) as f64 / 1e3,
    );
    cluster.nodes[2].ready().await?;
    cluster.equal().await?;
    Ok(())
}

/// Cuts the third node off, writes at the first one, and heals.
async fn repair(
    cluster: &Cluster,
    options: &Options,
    figures: &mut Figures,
    name: &str,
    more: u64,
) -> anyhow::Result<()> {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let [first, second, third] = &cluster.nodes[..] else { unreachable!("three nodes were started") };
    for node in [first, second] {
        node.until("linked", |status| linked(status) == 2).await?;
    }
    link(NAMES[2], "down")?;
    for node in [first, second] {
        node.until("without its link to the third node", |status| linked(status) == 1).await?;
    }
    // The third node may notice this a little later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.fill(0, more, |_| (key(0), vec![b'h'; VALUE])).await?;
    // The keys are far apart, so that they are spread over the map.
    let apart = options.keys / DIFFERING;
    let value = format!("{round:0>VALUE$}").into_bytes();
    first.fill(0, DIFFERING, move |n| (key(n * apart), value.clone())).await?;
    let wanted = first.status().await?["fingerprint"].clone();
    second.until("equal to the first", |status| status["fingerprint"] == wanted).await?;

    let before = to_third()?;
    let began = Instant::now();
    link(NAMES[2], "up")?;
    third.until("linked again", |status| linked(status) > 0).await?;
    let found = began.elapsed();
    third.until("equal to the first", |status| status["fingerprint"] == wanted).await?;
    let took = began.elapsed();
    let bytes = (to_third()? - before) as f64;
    let payload = (DIFFERING * (key(0).len() + VALUE) as u64) as f64;
    figures.add(&format!("{name}: from the cut's end to a link"), "", "s", found.as_secs_f64());
    figures.add(&format!("{name}: from the link to equal"), "", "s", took.saturating_sub(found).as_secs_f64());
    figures.add(
        &format!("{name}: sent for each of 10,000 keys, beyond key and value"),
        "150 B",
        "B",
        (bytes - payload) / DIFFERING as f64,
    );
    Ok(())
}

async fn under_load(cluster: &Cluster, options: &Options, figures: &mut Figures) -> anyhow::Result<()> {
    let keys = options.keys;
    let work: Work = Arc::new(move |n| put_anywhere(n, keys));
    let mut loops = JoinSet::new();
    for (first, node) in cluster.nodes.iter().enumerate() {
        loops.spawn(load::pipe(node.kv().await?, WINDOW, Duration::from_secs(5), work.clone(), first as u64, 3));
    }
    let mut most = Outcome::default();
    while let Some(outcome) = loops.join_next().await {
        most.add(outcome??);
    }
    figures.add("load: most puts, at all three nodes together", "", "/s", most.rate());
    cluster.equal().await?;
    for (name, goal, rate) in [("load at half of it", "5 ms", most.rate() / 2.0), ("light load", "", LIGHT)] {
        let stop = Arc::new(AtomicBool::new(false));
        let late = std::thread::spawn({
            let stop = stop.clone();
            move || lateness(&stop)
        });
        let (mut took_us, rate) = at_rate(cluster, keys, rate, Duration::from_secs(10)).await?;
        stop.store(true, Ordering::Relaxed);
        let mut late_us = late.join().map_err(|_| anyhow::anyhow!("the thread that measures wakeups panicked"))?;
        figures.add(&format!("{name}: puts"), "", "/s", rate);
        for (quantile_name, part, goal) in [("median", 0.5, ""), ("p99", 0.99, goal)] {
            let took = quantile(&mut took_us, part) as f64 / 1e3;
            figures.add(&format!("{name}: put to get at all, {quantile_name}"), goal, "ms", took);
        }
        let late = quantile(&mut late_us, 0.99) as f64 / 1e3;
        figures.add(&format!("{name}: how late an idle thread wakes, p99"), "", "ms", late);
        cluster.equal().await?;
    }
    Ok(())
}

/// By how many microseconds a thread that sleeps a millisecond at a time wakes late: the loaded machine adds this to
/// each wakeup.
fn lateness(stop: &AtomicBool) -> Vec<u64> {
    const NAP: Duration = Duration::from_millis(1);
    let mut late_us = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        std::thread::sleep(NAP);
        late_us.push(began.elapsed().saturating_sub(NAP).as_micros() as u64);
    }
    late_us
}

/// An open loop: puts at a rate, whether or not the nodes keep up, spread over the nodes.
///
/// [`PROBES_A_SECOND`] of the puts are watched on all three nodes. Returns for each of those the time from when it was due
/// until the last node has it; and the rate.
async fn at_rate(cluster: &Cluster, keys: u64, rate: f64, time: Duration) -> anyhow::Result<(Vec<u64>, f64)> {
    let began = Instant::now();
    let seen: Arc<Vec<[AtomicU64; 3]>> = Arc::new((0..PROBES).map(|_| Default::default()).collect());
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (mut tasks, mut pipes) = (JoinSet::new(), Vec::new());
    for (place, node) in cluster.nodes.iter().enumerate() {
        let request = WatchRequest { prefix: "probe/".into(), content_first: false, keys_only: true };
        let events = node.kv().await?.watch(request).await?.into_inner();
        tasks.spawn(record_probes(events, place, began, seen.clone(), stop.clone()));
    }
    for node in &cluster.nodes {
        let Pipe { requests, mut answers } = Pipe::open(node.kv().await?, 1 << 16).await?;
        pipes.push(requests);
        let answered = answered.clone();
        tasks.spawn(async move {
            while let Some(answer) = answers.message().await? {
                load::check(answer.result)?;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    let began_us = began.elapsed().as_micros() as u64;
    let (sent, due_us) = send_at_rate(&pipes, keys, rate, time, began).await?;
    let waited = Instant::now();
    while answered.load(Ordering::Relaxed) < sent {
        anyhow::ensure!(waited.elapsed() < Duration::from_secs(20), "not every put is answered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rate = sent as f64 / (began.elapsed().as_secs_f64() - began_us as f64 / 1e6);
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    drop(pipes);
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let mut took = Vec::new();
    for (due, seen) in due_us.iter().zip(seen.iter()) {
        let at: Vec<u64> = seen.iter().map(|at| at.load(Ordering::Relaxed)).collect();
        anyhow::ensure!(at.iter().all(|at| *at > 0), "a write did not reach all nodes: {at:?}");
        took.push(at.iter().max().copied().unwrap_or_default().saturating_sub(*due));
    }
    Ok((took, rate))
}

/// Records when each probe is seen on one node, microseconds since `began`.
async fn record_probes(
    mut events: Streaming<WatchResponse>,
    place: usize,
    began: Instant,
    seen: Arc<Vec<[AtomicU64; 3]>>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let Ok(message) = tokio::time::timeout(Duration::from_millis(100), events.message()).await else { continue };
        let message = message?.context("a watch ended")?;
        let now_us = began.elapsed().as_micros() as u64;
        anyhow::ensure!(message.lost == 0, "a watch lost its place");
        for event in message.events {
            let n: usize = event.key.trim_start_matches("probe/").parse()?;
            seen[n][place].store(now_us, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Sends puts for some time. Returns how many, and when each probe was due, microseconds since `began`.
async fn send_at_rate(
    pipes: &[mpsc::Sender<PipeRequest>],
    keys: u64,
    rate: f64,
    time: Duration,
    began: Instant,
) -> anyhow::Result<(u64, Vec<u64>)> {
    let began_us = began.elapsed().as_micros() as u64;
    let probe = whole(rate / PROBES_A_SECOND).max(1);
    let (mut sent, mut due_us) = (0u64, Vec::new());
    let mut ticks = tokio::time::interval(Duration::from_micros(500));
    while began.elapsed().as_micros() as u64 - began_us < time.as_micros() as u64 {
        ticks.tick().await;
        let now_us = began.elapsed().as_micros() as u64;
        let target = whole((now_us - began_us) as f64 / 1e6 * rate);
        while sent < target {
            let operation = if sent.is_multiple_of(probe) {
                due_us.push(began_us + whole(sent as f64 / rate * 1e6));
                put(format!("probe/{}", due_us.len() - 1), VALUE)
            } else {
                put_anywhere(sent, keys)
            };
            let pipe = &pipes[((sent % probe + sent / probe) % 3) as usize];
            pipe.send(PipeRequest { id: sent, operation: Some(operation) }).await?;
            sent += 1;
        }
    }
    anyhow::ensure!((due_us.len() as u64) < PROBES, "more probes than there is room for");
    Ok((sent, due_us))
}
