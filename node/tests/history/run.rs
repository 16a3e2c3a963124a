//! A run: the cluster, its clients, rounds of faults, and the checks after each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvasir_proto::v1;
use kvasir_proto::v1::cluster_client::ClusterClient;
use tokio::time::sleep;

use crate::check::{Verdict, check};
use crate::clients::{self, Gate};
use crate::history::{self, Entry, History, Outcome, Record};
use crate::namespaces::Network;
use crate::nemesis::{Nemesis, Plan};
use crate::node::{Node, channel, status};
use crate::observer::{self, Watched};

const NODES: usize = 5;
/// Clients that stay at each node, and clients that move between nodes.
const AT_HOME: usize = 3;
const ROAMING: usize = 8;
/// The nodes are equal within this time after the last fault, with room for a busy machine. The actual time is printed.
const EQUAL_WITHIN: Duration = Duration::from_mins(3);
/// Faults of a round.
const FAULTS: usize = 7;
/// The most violations that are printed.
const SHOWN: usize = 20;

/// Runs for about this long, and returns whether all promises were kept.
pub(crate) fn run(seed: u64, lasts: Duration) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(cluster(seed, lasts))
}

/// Where a failed run leaves its history and logs.
fn kept_in(seed: u64) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is a directory of target");
    target.join("histories").join(format!("seed-{seed}"))
}

async fn cluster(seed: u64, lasts: Duration) -> bool {
    println!("five nodes for {} s, SEED={seed}", lasts.as_secs());
    let kept = kept_in(seed);
    let _ = std::fs::remove_dir_all(&kept);
    std::fs::create_dir_all(&kept).unwrap();
    let history = History::new();
    let network = Network::new(NODES);
    let mut nodes: Vec<_> = (0..NODES).map(|number| Node::new(number, NODES, &kept)).collect();
    nodes.iter_mut().for_each(Node::start);
    let nemesis = Nemesis::new(nodes, network, history.clone());
    let watched: Vec<Watched> = (0..NODES).map(|_| Watched::default()).collect();
    for (node, watched) in watched.iter().enumerate() {
        tokio::spawn(observer::lives(node, history.clone()));
        tokio::spawn(watched.clone().keep(node, history.clone()));
    }
    tokio::spawn(observer::stalls(history.clone()));

    let mut broken = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut settle = settled(&history, &watched).await;
    if settle.is_ok() {
        clients::prepare(NODES, &history).await;
        settle = settled(&history, &watched).await;
    }
    let gate = start_clients(seed, &history);
    let mut plan = Plan::new(seed, NODES);
    let mut verdict = Verdict::default();
    let began = Instant::now();
    let mut rounds = 0;
    while settle.is_ok() && began.elapsed() < lasts {
        rounds += 1;
        gate.open();
        nemesis.round(plan.round(FAULTS)).await;
        let healed = Instant::now();
        gate.close().await;
        settle = settled(&history, &watched).await;
        let took = healed.elapsed();
        slowest = slowest.max(took);
        // Each node is then known to be alive after this moment.
        sleep(Duration::from_millis(1500)).await;
        let records = history.records();
        verdict = check(&records, NODES);
        println!(
            "{:>4} s: round {rounds}: {}; equal {:.1} s after healing; {} calls, {} violations",
            began.elapsed().as_secs(),
            faults(&records),
            took.as_secs_f64(),
            records.iter().filter(|record| matches!(record, Record::Op(_))).count(),
            verdict.violations.len()
        );
        if !verdict.violations.is_empty() || !nemesis.broken().is_empty() {
            break;
        }
    }
    broken.extend(settle.err());
    broken.extend(nemesis.broken());
    broken.append(&mut verdict.violations);
    for (kind, times) in nemesis.done() {
        println!("{times:>8} × {kind:?}");
    }
    println!("slowest to be equal after healing: {:.1} s", slowest.as_secs_f64());
    conclude(seed, &kept, &history.records(), &verdict, broken)
}

/// The clients, which call while the gate is open.
fn start_clients(seed: u64, history: &History) -> Gate {
    let gate = Gate::new();
    for id in 0..NODES * AT_HOME {
        tokio::spawn(clients::at_home(id, id % NODES, NODES, seed, history.clone(), gate.clone()));
    }
    for id in NODES * AT_HOME..NODES * AT_HOME + ROAMING {
        tokio::spawn(clients::roaming(id, NODES, seed, history.clone(), gate.clone()));
    }
    gate
}

/// Prints what the run showed, keeps its history if it failed, and returns whether it passed.
fn conclude(seed: u64, kept: &Path, records: &[Record], verdict: &Verdict, mut broken: Vec<String>) -> bool {
    summary(records, &verdict.concluded);
    // A rule that concluded nothing shows nothing.
    for rule in [
        "acknowledged writes that live",
        "calls of one session in order",
        "deleted values that stay away",
        "reads of keys that no client changes",
    ] {
        if !verdict.concluded.contains_key(rule) {
            broken.push(format!("the run could not check: {rule}"));
        }
    }
    if broken.is_empty() {
        std::fs::remove_dir_all(kept).unwrap();
    } else {
        history::save(records, &kept.join("history.jsonl"));
        show(&broken);
        println!("the history and the nodes' logs are in {}", kept.display());
        println!("SEED={seed} draws the same faults again; HISTORY={}/history.jsonl judges again", kept.display());
    }
    broken.is_empty()
}

/// Checks a kept history.
pub(crate) fn judge(file: &str) {
    let records = history::load(Path::new(file));
    let verdict = check(&records, NODES);
    summary(&records, &verdict.concluded);
    show(&verdict.violations);
    assert!(verdict.violations.is_empty(), "promises were broken: see above");
}

fn show(broken: &[String]) {
    println!("{} violations", broken.len());
    for what in broken.iter().take(SHOWN) {
        println!("VIOLATION {what}");
    }
}

/// The faults since the nodes were last equal.
fn faults(records: &[Record]) -> String {
    let settled: Vec<_> = records.iter().enumerate().filter(|(_, r)| matches!(r, Record::Settled { .. })).collect();
    let from = settled.len().checked_sub(2).map_or(0, |before| settled[before].0);
    let done = |record: &Record| match record {
        Record::Fault { what, .. } => Some(what.clone()),
        _ => None,
    };
    records[from..].iter().filter_map(done).collect::<Vec<_>>().join(", ")
}

fn summary(records: &[Record], concluded: &BTreeMap<&str, usize>) {
    let mut calls: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut resets = std::collections::BTreeSet::new();
    for record in records {
        match record {
            Record::Op(op) => {
                let call = format!("{:?}", op.call);
                let name = call.split(' ').next().unwrap_or_default().to_owned();
                calls.entry(name).or_default()[usize::from(matches!(op.outcome, Outcome::Failed { .. }))] += 1;
            }
            Record::Life { node, life, .. } if !life.ends_with("/0") => drop(resets.insert((node, life))),
            _ => {}
        }
    }
    for (call, [answered, failed]) in calls {
        println!("{answered:>8} × {call}, and {failed} without an answer");
    }
    println!("{:>8} × a node was evicted and reset", resets.len());
    for (rule, times) in concluded {
        println!("{times:>8} × {rule}");
    }
}

/// Waits until all nodes are ready, linked to all others, and equal by their listings, fingerprints and watches;
/// records the entries.
async fn settled(history: &History, watched: &[Watched]) -> Result<(), String> {
    let clock = Instant::now();
    loop {
        let begin = history.now();
        let error = match equal(watched).await {
            Ok(entries) => {
                history.add(Record::Settled { begin, end: history.now(), entries });
                return Ok(());
            }
            Err(error) => error,
        };
        if clock.elapsed() > EQUAL_WITHIN {
            return Err(format!("not equal {EQUAL_WITHIN:?} after all faults were over: {error}"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn equal(watched: &[Watched]) -> Result<Vec<Entry>, String> {
    let mut all = Vec::new();
    let mut prints = Vec::new();
    for node in 0..watched.len() {
        prints.push(looks(node).await?);
        all.push(clients::list(node, Duration::from_secs(10)).await.map_err(|error| format!("n{node}: {error}"))?);
    }
    for node in 1..watched.len() {
        same("listing", node, &all[0], &all[node])?;
        if prints[0] != prints[node] {
            return Err(format!("n{node} differs by its fingerprint and count: {prints:?}"));
        }
    }
    for (node, watched) in watched.iter().enumerate() {
        same("watch", node, &all[0], &watched.entries().ok_or(format!("no watch of n{node} is open"))?)?;
    }
    // Nothing in flight may still change the map, such as a node that reissues writes.
    for (node, print) in prints.iter().enumerate() {
        if looks(node).await? != *print {
            return Err(format!("n{node} still changes"));
        }
    }
    Ok(all.swap_remove(0))
}

/// Whether two maps are the same, or how they differ.
fn same(what: &str, node: usize, one: &[Entry], other: &[Entry]) -> Result<(), String> {
    if one == other {
        return Ok(());
    }
    let lacks = one.iter().find(|entry| !other.contains(entry));
    let has = other.iter().find(|entry| !one.contains(entry));
    Err(format!("the {what} of n{node} differs from n0's: it lacks {lacks:?} and has {has:?}"))
}

/// The fingerprint and key count of a node that is ready and linked to all others.
async fn looks(node: usize) -> Result<(String, u64), String> {
    let mut cluster = ClusterClient::new(channel(node));
    let status = status(&mut cluster, Duration::from_secs(2)).await.ok_or(format!("n{node} does not answer"))?;
    let members = cluster.members(v1::MembersRequest {}).await.map_err(|error| format!("n{node}: {error}"))?;
    let members = members.into_inner().members;
    let all = members.len() == NODES && members.iter().all(|member| member.linked);
    let seats = status.seats.get("member").copied().unwrap_or_default();
    if status.phase() != v1::Phase::Ready || !all || seats as usize != NODES {
        let linked: Vec<_> = members.iter().map(|member| (&member.name, member.linked)).collect();
        return Err(format!("n{node} is {:?}, with the links {linked:?} and {:?}", status.phase(), status.seats));
    }
    Ok((status.fingerprint, status.keys))
}
