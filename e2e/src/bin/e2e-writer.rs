//! Writes to its own cluster while other tests disturb the Kubernetes, and finally checks that every member holds every
//! acknowledged write: `e2e-writer FOLDER`. It creates the file `started` in the folder once the cluster serves, writes
//! until a file `stop` exists, and exits with 1 if anything was lost. `scripts/test e2e` runs it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use kvasir_client::{Ack, AckLevel, Client, PutOptions, RetryPolicy};
use kvasir_e2e::ledger::Ledger;
use kvasir_e2e::trial::{Trial, held};
use kvasir_e2e::wait::GENEROUS;
use kvasir_e2e::{Lab, artifacts, until, within};
use serde_json::json;

const NAME: &str = "writer";
/// The name of the cluster.
const CLUSTER: &str = "kept";
const MEMBERS: usize = 3;
/// Pause between two calls.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a failed call.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// After this many puts, a key acknowledged earlier is deleted.
const PUTS_PER_DELETE: usize = 4;
/// The deleted key was put this many puts earlier, so all members hold it.
const AGE: usize = 40;
/// The most keys; from then on the writer only checks them.
const MAX_PUTS: usize = 60_000;
/// The run ends on its own after this time.
const LONGEST: Duration = Duration::from_hours(3);
/// A run with fewer acknowledged writes tested nothing.
const LEAST: usize = 50;
/// How many lost keys are listed.
const NAMED: usize = 20;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("usage: e2e-writer FOLDER")?);
    let trial = Trial { lab: Lab::find().await?, namespace: format!("e2e-{NAME}") };
    let outcome = run(&trial, &folder).await;
    if let Err(error) = &outcome {
        let kept = artifacts::collect(&trial.lab.client, NAME, &trial.namespace, &format!("{error:#}")).await;
        match kept {
            Ok(folder) => eprintln!("{NAME}: logs, events and descriptions are in {}", folder.display()),
            Err(error) => eprintln!("{NAME}: could not keep its logs: {error:#}"),
        }
    }
    let ended = trial.end().await;
    outcome.and(ended)
}

async fn run(trial: &Trial, folder: &Path) -> Result<()> {
    trial.begin().await.context("the writer cannot begin")?;
    let spec = json!({ "replicas": MEMBERS, "resources": { "limits": { "memory": "256Mi" } } });
    trial.ask_for_cluster(CLUSTER, spec).await?;
    trial.settled(CLUSTER, MEMBERS).await?;
    let client = trial.speak_to_service(CLUSTER).await?;
    let once = Client::builder(trial.service_address(CLUSTER).await?).retry(RetryPolicy::none()).build()?;
    tokio::fs::write(folder.join("started"), "").await.context("cannot say that it has started")?;
    let ledger = write(&client, &once, &folder.join("stop")).await;
    eprintln!(
        "{NAME}: {} writes acknowledged ({} of them deletes), {} unanswered",
        ledger.acknowledged(),
        ledger.deletes(),
        ledger.unanswered()
    );
    ensure!(
        ledger.acknowledged() >= LEAST,
        "only {} writes were acknowledged: nothing was tried",
        ledger.acknowledged()
    );
    check(trial, &ledger).await
}

/// Puts and deletes with `ack: MAJORITY` until a file `stop` exists. A failed call is no error: other tests stop nodes.
///
/// The client for deletes does not retry: a retry could report "not found" because the first attempt succeeded.
async fn write(client: &Client, once: &Client, stop: &Path) -> Ledger {
    let (mut ledger, began, mut puts) = (Ledger::default(), Instant::now(), 0);
    let majority = || Ack::from(AckLevel::Majority);
    let key = |n: usize| format!("kept-{n:06}");
    while !stop.exists() && began.elapsed() < LONGEST {
        tokio::time::sleep(PAUSE).await;
        if puts >= MAX_PUTS {
            continue;
        }
        let (new, value) = (key(puts), format!("value {puts}").into_bytes());
        match client.put(new.clone(), value.clone(), PutOptions::with_ack(majority())).await {
            Ok(_) => ledger.put(new, value),
            Err(error) => {
                eprintln!("{NAME}: put {new}: {error}");
                ledger.unknown(&new);
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
        puts += 1;
        let old = key(puts.saturating_sub(AGE));
        if puts.is_multiple_of(PUTS_PER_DELETE) && puts > AGE && ledger.holds(&old) {
            match once.delete_with(old.clone(), majority()).await {
                Ok(true) => ledger.delete(&old),
                // An acknowledged write may arrive late at this member; a lost one is missing at the end.
                Ok(false) => eprintln!("{NAME}: delete {old}: not there"),
                Err(error) => {
                    eprintln!("{NAME}: delete {old}: {error}");
                    ledger.unknown(&old);
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }
    ledger
}

/// Checks that every member holds what was acknowledged.
async fn check(trial: &Trial, ledger: &Ledger) -> Result<()> {
    let pods = until("all members to be back", async || {
        let pods = trial.member_pods(CLUSTER).await?;
        let ready = pods.iter().filter(|pod| kvasir_e2e::trial::is_ready(pod)).count();
        ensure!(ready == MEMBERS, "{ready} of {MEMBERS} are ready");
        Ok(pods)
    })
    .await?;
    for pod in &pods {
        let (name, client) = (pod.name_any(), trial.speak_to(pod)?);
        // Writes in flight have a moment to arrive.
        let mut latest = None;
        let even = within(GENEROUS, "what was acknowledged", async || {
            let balance = ledger.balance(&held(&client).await?);
            let even = balance.is_even();
            latest = Some(balance);
            ensure!(even, "not all is there");
            Ok(())
        })
        .await;
        let balance = latest.with_context(|| format!("{name} does not answer: {even:?}"))?;
        println!(
            "{NAME}: {name}: {} acknowledged, {} found, {} lost",
            ledger.acknowledged(),
            balance.found,
            balance.lost.len() + balance.undone.len()
        );
        let named = |keys: &[String]| keys.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        even.with_context(|| {
            let (lost, undone, strange) = (named(&balance.lost), named(&balance.undone), named(&balance.strange));
            format!("{name}: lost: [{lost}]; deleted and there: [{undone}]; never put: [{strange}]")
        })?;
    }
    Ok(())
}
