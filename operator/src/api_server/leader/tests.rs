//! The rules as plain data, and several candidates with one API server, on a paused clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::{api_server::watches::Watches, fake::Fake};

const NAME: &str = "kvasir-operator";

fn candidate(identity: &str, version: &str) -> Candidate {
    Candidate { identity: identity.to_owned(), version: Version::parse(version).unwrap() }
}

fn lease(holder: Option<&str>, version: &str, successor: Option<(&str, &str)>) -> Lease {
    let mut annotations = json!({ HOLDER_VERSION: version });
    if let Some((name, version)) = successor {
        annotations[SUCCESSOR] = json!(name);
        annotations[SUCCESSOR_VERSION] = json!(version);
    }
    serde_json::from_value(json!({
        "metadata": { "name": NAME, "annotations": annotations },
        "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15 },
    }))
    .unwrap()
}

#[test]
fn leader_moves_by_the_rules() {
    let me = candidate("me", "1.2.0");
    let (fresh, old) = (Duration::from_secs(14), Duration::from_secs(15));
    let rules = [
        ("no Lease yet", None, fresh, Move::Take),
        ("renew", Some(lease(Some("me"), "1.2.0", None)), fresh, Move::Take),
        ("renew, an equal waits", Some(lease(Some("me"), "1.2.0", Some(("x", "1.2.0")))), fresh, Move::Take),
        ("renew, an older waits", Some(lease(Some("me"), "1.2.0", Some(("x", "1.1.9")))), fresh, Move::Take),
        ("a newer waits", Some(lease(Some("me"), "1.2.0", Some(("x", "1.10.0")))), fresh, Move::StepBack),
        (
            "a newer build is no newer release",
            Some(lease(Some("me"), "1.2.0", Some(("x", "1.2.0+7")))),
            fresh,
            Move::Take,
        ),
        ("nonsense waits", Some(lease(Some("me"), "1.2.0", Some(("x", "latest")))), fresh, Move::Take),
        ("released", Some(lease(None, "", None)), fresh, Move::Take),
        ("released for a newer one", Some(lease(None, "", Some(("x", "2.0.0")))), fresh, Move::Wait),
        ("released for one that does not come", Some(lease(None, "", Some(("x", "2.0.0")))), old, Move::Take),
        ("released for me", Some(lease(None, "", Some(("me", "1.2.0")))), fresh, Move::Take),
        ("held by an equal", Some(lease(Some("x"), "1.2.0", None)), fresh, Move::Wait),
        ("held by a newer one", Some(lease(Some("x"), "1.3.0", None)), fresh, Move::Wait),
        ("held by one that is gone, older or newer", Some(lease(Some("x"), "1.3.0", None)), old, Move::Take),
        ("held by an older one", Some(lease(Some("x"), "1.1.0", None)), fresh, Move::Announce),
        ("a release candidate is older", Some(lease(Some("x"), "1.2.0-rc.1", None)), fresh, Move::Announce),
        ("announced already", Some(lease(Some("x"), "1.1.0", Some(("me", "1.2.0")))), fresh, Move::Wait),
        ("a still newer one waits", Some(lease(Some("x"), "1.1.0", Some(("y", "1.3.0")))), fresh, Move::Wait),
        ("a less new one waits", Some(lease(Some("x"), "1.0.0", Some(("y", "1.1.0")))), fresh, Move::Announce),
        ("held by one that says no release", Some(lease(Some("x"), "", None)), fresh, Move::Wait),
    ];
    for (what, lease, unchanged, expected) in rules {
        assert_eq!(decide(&me, lease.as_ref(), unchanged), expected, "{what}");
    }
}

/// How many work now, and the most that worked at the same time.
#[derive(Clone, Default)]
struct Work {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// Counts as working until it is dropped.
struct Working(Work);

impl Work {
    fn begin(&self) -> Working {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Working(self.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A candidate in a task of its own.
struct Running {
    permit: Permit,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(fake: &Fake, work: &Work, identity: &str, version: &str) -> Self {
        let me = candidate(identity, version);
        let watch = Watches::default().begin("Lease");
        let election = Election::new(fake.client(), "shop", NAME.to_owned(), me, watch);
        let permit = election.permit();
        let (stop, mut stopped) = watch::channel(false);
        let work = work.clone();
        let work = move |mut stop: watch::Receiver<bool>| {
            let working = work.begin();
            async move {
                drop(stop.wait_for(|stop| *stop).await);
                // Work under way takes a moment to end.
                sleep(Duration::from_secs(1)).await;
                drop(working);
            }
        };
        let shutdown = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
        Self { permit, stop, task: tokio::spawn(election.run(work, shutdown)) }
    }

    fn leads(&self) -> bool {
        self.permit.holds()
    }
}

async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

fn holder(fake: &Fake) -> Option<String> {
    fake.object("leases", NAME)?["spec"]["holderIdentity"].as_str().map(ToOwned::to_owned)
}

#[tokio::test(start_paused = true)]
async fn leader_is_one_and_hands_over_as_it_ends() {
    let (fake, work) = (Fake::default(), Work::default());
    let first = Running::start(&fake, &work, "one", "1.0.0");
    pass(1).await;
    let second = Running::start(&fake, &work, "two", "1.0.0");
    for _ in 0..60 {
        pass(1).await;
        assert!(first.leads() && !second.leads());
    }
    first.stop.send_replace(true);
    first.task.await.unwrap();
    assert_eq!(holder(&fake), None, "it was not released");
    pass(4).await;
    assert!(second.leads(), "a Lease that was released is taken at the next look");
    assert_eq!(work.most.load(Ordering::Relaxed), 1, "two worked at once");
}

#[tokio::test(start_paused = true)]
async fn leader_of_an_older_release_steps_back() {
    let (fake, work) = (Fake::default(), Work::default());
    let old = Running::start(&fake, &work, "old", "0.9.0");
    pass(1).await;
    let new = Running::start(&fake, &work, "new", "0.10.0");
    pass(11).await;
    assert!(new.leads() && !old.leads(), "held by {:?}", holder(&fake));
    for _ in 0..60 {
        pass(1).await;
        assert!(new.leads() && !old.leads(), "the older one came back");
    }
    // The newer candidate vanished: an older release is better than none.
    new.task.abort();
    pass(22).await;
    assert!(old.leads());
    assert_eq!(work.most.load(Ordering::Relaxed), 1, "two worked at once");
}

#[tokio::test(start_paused = true)]
async fn leader_resumes_if_its_successor_does_not_come() {
    let (fake, work) = (Fake::default(), Work::default());
    let old = Running::start(&fake, &work, "old", "0.9.0");
    pass(1).await;
    let new = Running::start(&fake, &work, "new", "0.10.0");
    sleep(Duration::from_millis(100)).await;
    new.task.abort();
    pass(9).await;
    assert!(!old.leads(), "it steps back for one that has announced itself");
    pass(15).await;
    assert!(old.leads(), "no candidate leads");
    pass(60).await;
    assert!(old.leads(), "the word of one that is gone is taken out");
}

#[tokio::test(start_paused = true)]
async fn leader_stops_before_its_lease_runs_out() {
    let (fake, work) = (Fake::default(), Work::default());
    let here = fake.another();
    let first = Running::start(&here, &work, "one", "1.0.0");
    pass(1).await;
    let second = Running::start(&fake, &work, "two", "1.0.0");
    pass(10).await;
    assert!(first.leads());
    // One of them is cut off: its requests hang, and its permit expires.
    here.leave();
    pass(10).await;
    assert!(!first.leads() && work.now.load(Ordering::Relaxed) == 0, "it works on without having renewed");
    assert!(!second.leads(), "the Lease is valid still");
    pass(12).await;
    assert!(second.leads(), "held by {:?}", holder(&fake));
    here.back();
    pass(60).await;
    assert!(second.leads() && !first.leads());
    assert_eq!(work.most.load(Ordering::Relaxed), 1, "two worked at once");
}

#[tokio::test(start_paused = true)]
async fn leader_is_back_soon_after_an_outage() {
    for outage in [1, 5, 74, 600] {
        let (fake, work) = (Fake::default(), Work::default());
        let one = Running::start(&fake, &work, "one", "1.0.0");
        pass(1).await;
        fake.leave();
        pass(outage).await;
        assert!(outage < 10 || !one.leads());
        fake.back();
        pass(4).await;
        assert!(one.leads(), "after {outage} s");
    }
}

#[tokio::test(start_paused = true)]
async fn leader_counts_a_rival_between_read_and_write() {
    let (fake, work) = (Fake::default(), Work::default());
    // Both find no Lease at the same moment.
    let both = [Running::start(&fake, &work, "one", "1.0.0"), Running::start(&fake, &work, "two", "1.0.0")];
    for _ in 0..30 {
        pass(1).await;
        assert_eq!(both.iter().filter(|one| one.leads()).count(), 1);
    }
    assert_eq!(work.most.load(Ordering::Relaxed), 1);
}
