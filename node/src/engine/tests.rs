//! The engine of one node, and of two that are linked by hand.

use bytes::Bytes;
use kvasir_proto::peer::v1::{Message, SeatState};

use super::*;
use crate::replica::Full;
use crate::session::Session;
use crate::store::Store;

fn options(origin: u64, max_memory: Option<u64>) -> EngineOptions {
    EngineOptions {
        origin,
        name: format!("node-{origin}"),
        started_ms: 1,
        voters: 1,
        evict_after: Duration::from_mins(10),
        evict_ending: false,
        sync_interval: Duration::from_secs(1),
        max_clock_skew: Duration::from_secs(10),
        max_memory,
        may_found: true,
        serve_alone: true,
        join_timeout: Duration::ZERO,
    }
}

fn alone(max_memory: Option<u64>) -> Arc<Engine> {
    let engine = Engine::new(&options(7, max_memory));
    let mut inner = engine.inner.lock();
    inner.replica.tick(View::ALONE, wall_ms());
    engine.after(&mut inner);
    drop(inner);
    engine
}

#[test]
fn list_pages_by_prefix_without_dead_values() {
    let engine = alone(None);
    for key in ["a", "b/1", "b/2", "b/3", "b/4", "c"] {
        engine.put(key, &Bytes::from_static(b"v"), None).unwrap();
    }
    engine.delete("b/2").unwrap();
    let keys =
        |page: &Page| page.entries.iter().map(|(k, _)| String::from_utf8_lossy(k).into()).collect::<Vec<String>>();
    let first = engine.list("b/", None, 2, usize::MAX).unwrap();
    assert_eq!((keys(&first), first.more), (vec!["b/1".to_owned(), "b/3".into()], true));
    let rest = engine.list("b/", Some("b/3"), 2, usize::MAX).unwrap();
    assert_eq!((keys(&rest), rest.more), (vec!["b/4".to_owned()], false));
    assert_eq!(engine.list("", None, 100, 1).unwrap().entries.len(), 1);
}

#[test]
fn full_node_refuses_puts_and_accepts_deletes() {
    let engine = alone(Some(1_200));
    engine.put("k", &Bytes::from(vec![0; 500]), None).unwrap();
    let refused = engine.put("l", &Bytes::from(vec![0; 500]), None);
    assert!(matches!(refused, Err(WriteError::Full(Full { limit: 1_200, .. }))), "{refused:?}");
    assert!(engine.stats().full && engine.read("k").unwrap().value.is_some());
    engine.delete("k").unwrap();
    engine.put("l", &Bytes::from(vec![0; 500]), None).unwrap();
    assert!(!engine.stats().full);
}

#[test]
fn epoch_is_known_once_there_is_a_map() {
    assert_eq!(Engine::new(&options(7, None)).stats().epoch, None, "the node has no map yet");
    let before = wall_ms();
    let epoch = alone(None).stats().epoch.unwrap();
    assert!(epoch.founder == 7 && (before..=wall_ms()).contains(&epoch.founded_ms), "{epoch:?}");
    let (a, b, _) = pair();
    assert_eq!(a.stats().epoch, b.stats().epoch, "one map, one epoch");
}

#[test]
fn draining_node_serves_only_reads() {
    let engine = alone(None);
    engine.put("k", &Bytes::from_static(b"v"), None).unwrap();
    engine.drain();
    assert_eq!(engine.put("k", &Bytes::new(), None), Err(WriteError::NotReady(Phase::Draining)));
    assert!(engine.read("k").unwrap().value.is_some());
}

/// Passes messages between two linked engines until none is due.
fn pass(a: &Engine, b: &Engine, links: (LinkId, LinkId)) {
    loop {
        let (to_b, to_a) = (a.poll_send(links.0), b.poll_send(links.1));
        if to_b.is_none() && to_a.is_none() {
            return;
        }
        if let Some(message) = to_b {
            b.receive(links.1, message).unwrap();
        }
        if let Some(message) = to_a {
            a.receive(links.0, message).unwrap();
        }
    }
}

/// A node that founded a map, one that received its snapshot, and the links between them.
fn pair() -> (Arc<Engine>, Arc<Engine>, (LinkId, LinkId)) {
    let a = alone(None);
    let b = Engine::new(&options(8, None));
    let links = (a.link_up(7, b.id()).unwrap().id, b.link_up(8, a.id()).unwrap().id);
    for _ in 0..5 {
        pass(&a, &b, links);
        for engine in [&a, &b] {
            let mut inner = engine.inner.lock();
            inner.replica.tick(View::ALONE, wall_ms());
            engine.after(&mut inner);
        }
    }
    assert!(b.inner.lock().replica.is_ready());
    (a, b, links)
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn ack_waits_for_peers_and_reports_holders() {
    let (a, b, links) = pair();
    let permit = a.permit().unwrap();
    let dot = a.put("k", &bytes("v"), None).unwrap();
    let soon = || tokio::time::Instant::now() + Duration::from_millis(30);
    let late = a.acked(&permit, dot, Need::Count(1), soon()).await;
    assert_eq!((late.met, late.holders.peers, late.holders.voters), (false, 0, 1));
    assert!(a.read("k").unwrap().value.is_some(), "the write is kept");
    let waits = tokio::spawn({
        let (a, end) = (a.clone(), tokio::time::Instant::now() + Duration::from_secs(30));
        async move { a.acked(&a.permit().unwrap(), dot, Need::All, end).await }
    });
    tokio::task::yield_now().await;
    pass(&a, &b, links);
    let acked = waits.await.unwrap();
    assert_eq!((acked.met, acked.holders.peers, acked.holders.voters), (true, 1, 2));
    assert!(!a.acked(&permit, dot, Need::Count(2), soon()).await.met, "one peer is not two");
}

#[test]
fn waiting_calls_are_bounded() {
    let engine = alone(None);
    let permits: Vec<_> = (0..MAX_WAITING).map(|_| engine.permit().unwrap()).collect();
    assert_eq!(engine.permit().unwrap_err(), TooManyWaiting);
    assert_eq!(engine.stats().waiting, MAX_WAITING);
    drop(permits);
    assert!(engine.permit().is_ok());
}

#[tokio::test]
async fn session_waits_until_covered_or_deadline() {
    let (a, b, links) = pair();
    let mut session = Session::default();
    session.saw(a.put("k", &bytes("v"), None).unwrap());
    let session = Session::decode(&a.token(&mut session).unwrap()).unwrap();
    assert!(a.covers(&session) && !b.covers(&session));
    let soon = tokio::time::Instant::now() + Duration::from_millis(30);
    assert_eq!(b.catch_up(&session, soon).await, Err(SessionError::Behind));
    let waits = tokio::spawn({
        let (b, session, end) = (b.clone(), session.clone(), tokio::time::Instant::now() + Duration::from_secs(30));
        async move { b.catch_up(&session, end).await }
    });
    tokio::task::yield_now().await;
    pass(&a, &b, links);
    assert_eq!(waits.await.unwrap(), Ok(()));
    assert!(b.read("k").unwrap().value.is_some());
}

/// The next batch, or an empty one if nothing is due.
fn batch(watch: &Watch) -> Batch {
    use futures::FutureExt as _;
    watch.next(100, 1 << 20).now_or_never().unwrap_or_default()
}

fn words(batch: &Batch) -> Vec<String> {
    let word = |(key, event): &(Bytes, KeyEvent)| {
        let key = String::from_utf8_lossy(key);
        match event {
            KeyEvent::Put(value) => format!("{key}={}", String::from_utf8_lossy(&value.value)),
            KeyEvent::Deleted(_) => format!("{key} deleted"),
            KeyEvent::Expired(_) => format!("{key} expired"),
        }
    };
    batch.events.iter().map(word).collect()
}

#[test]
fn watch_sends_content_then_changes() {
    let engine = alone(None);
    for key in ["a/1", "a/2", "b/1"] {
        engine.put(key, &bytes("old"), None).unwrap();
    }
    let watch = engine.watch("a/", true).unwrap();
    let content = batch(&watch);
    assert_eq!((words(&content), content.live), (vec!["a/1=old".to_owned(), "a/2=old".into()], true));
    engine.put("b/1", &bytes("new"), None).unwrap();
    engine.put("a/1", &bytes("new"), None).unwrap();
    engine.delete("a/2").unwrap();
    engine.put("a/3", &bytes("short"), Some(Duration::from_millis(1))).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let mut inner = engine.inner.lock();
    inner.replica.tick(View::default(), wall_ms());
    engine.after(&mut inner);
    drop(inner);
    assert_eq!(words(&batch(&watch)), ["a/1=new", "a/2 deleted", "a/3=short", "a/3 expired"]);
    assert_eq!(batch(&watch), Batch::default());
    drop(watch);
    assert_eq!(engine.stats().watches, 0);
    engine.put("a/1", &bytes("unseen"), None).unwrap();
    assert_eq!(engine.inner.lock().replica.take_changes(), [], "without a watch no changes are recorded");
}

#[test]
fn watch_without_content_is_live_at_once() {
    let engine = alone(None);
    engine.put("k", &bytes("old"), None).unwrap();
    let watch = engine.watch("", false).unwrap();
    assert_eq!(batch(&watch), Batch { live: true, ..Batch::default() });
    engine.put("k", &bytes("new"), None).unwrap();
    assert_eq!(words(&batch(&watch)), ["k=new"]);
}

#[test]
fn watch_never_sends_older_after_newer() {
    let engine = alone(None);
    for key in ["a", "b", "c", "d"] {
        engine.put(key, &bytes("1"), None).unwrap();
    }
    let watch = engine.watch("", true).unwrap();
    let two = |watch: &Watch| {
        use futures::FutureExt as _;
        watch.next(2, 1 << 20).now_or_never().unwrap()
    };
    assert_eq!(words(&two(&watch)), ["a=1", "b=1"]);
    // `a` is behind the walk, `d` and `c` are ahead of it.
    engine.put("a", &bytes("2"), None).unwrap();
    engine.put("d", &bytes("2"), None).unwrap();
    engine.delete("c").unwrap();
    assert_eq!(words(&two(&watch)), ["a=2"]);
    let rest = two(&watch);
    assert_eq!((words(&rest), rest.live), (vec!["d=2".to_owned()], true));
}

#[test]
fn slow_watch_is_lost_and_its_queue_freed() {
    let engine = alone(None);
    let watch = engine.watch("", false).unwrap();
    let other = engine.watch("other", false).unwrap();
    for _ in 0..=QUEUE_EVENTS {
        engine.put("k", &bytes("v"), None).unwrap();
    }
    assert_eq!(batch(&watch), Batch { lost: Some(Lost::Slow), ..Batch::default() });
    let large = Bytes::from(vec![0; 1 << 20]);
    let watch = engine.watch("large", false).unwrap();
    for _ in 0..=QUEUE_BYTES >> 20 {
        engine.put("large", &large, None).unwrap();
    }
    assert_eq!(batch(&watch).lost, Some(Lost::Slow));
    assert_eq!(batch(&other).lost, None, "keys outside of the prefix are not queued");
}

#[test]
fn watches_are_bounded() {
    let engine = alone(None);
    let watches: Vec<_> = (0..MAX_WATCHES).map(|_| engine.watch("", false).unwrap()).collect();
    assert!(matches!(engine.watch("", false), Err(WatchError::TooMany)));
    drop(watches);
    assert!(engine.watch("", false).is_ok());
}

#[test]
fn touch_replaces_the_ttl_and_keeps_the_value() {
    let engine = alone(None);
    engine.put("k", &bytes("v"), Some(Duration::from_mins(1))).unwrap();
    engine.touch("k", None).unwrap().unwrap();
    let value = engine.read("k").unwrap().value.unwrap();
    assert_eq!((value.value, value.expires_ms), (bytes("v"), None));
    assert!(engine.touch("k", Some(Duration::from_mins(1))).unwrap().is_some());
    assert!(engine.read("k").unwrap().value.unwrap().expires_ms.is_some());
    assert_eq!(engine.touch("none", None), Ok(None));
}

#[test]
fn touch_needs_room_for_a_ttl() {
    let engine = alone(Some(Store::cost_of(1, 1) + Store::COST_OF_END - 1));
    engine.put("k", &bytes("v"), None).unwrap();
    assert!(matches!(engine.touch("k", Some(Duration::from_mins(1))), Err(WriteError::Full(_))));
    assert!(engine.touch("k", None).unwrap().is_some() && engine.read("k").unwrap().value.is_some());
}

#[test]
fn rejoin_drops_links_and_changes_the_origin() {
    use kvasir_proto::peer::v1::{Roster, Seat, message::Kind};
    let (a, b, _) = pair();
    let link = b.link_up(8, a.id()).unwrap();
    b.put("k", &bytes("v"), None).unwrap();
    let mut identity = b.subscribe_identity();
    identity.mark_unchanged();
    let ended = Seat {
        origin: 8,
        name: "node-8".to_owned(),
        voter: true,
        started_ms: 1,
        state: SeatState::Ended.into(),
        since_hlc: 1,
        ..Seat::default()
    };
    let roster = Message { kind: Some(Kind::Roster(Roster { seats: vec![ended] })) };
    b.receive(link.id, roster).unwrap();
    assert!(link.gone.is_cancelled() && b.stats().linked.is_empty());
    assert_ne!(b.origin(), 8);
    assert!(identity.has_changed().unwrap());
    assert_eq!((b.stats().counters.returns, identity.borrow().returning), (1, true));
    assert_eq!(b.stats().former_origins, [8]);
    assert!(b.link_up(8, a.id()).is_none(), "a handshake with the old origin is void");
}

#[test]
fn stale_view_never_founds() {
    let join_timeout = Duration::from_hours(1);
    let options = EngineOptions { serve_alone: false, join_timeout, ..options(8, None) };
    let none_unlinked = View::ALONE;
    let a = alone(None);
    let b = Engine::new(&options);
    let link = b.link_up(8, a.id()).unwrap();
    let (linked, links) = b.linked();
    assert_eq!(linked, [7]);
    b.set_view(none_unlinked, links);
    b.tick();
    assert_eq!(b.phase(), Phase::Syncing, "waits for its peer's snapshot");
    // The view predates the loss of the link.
    b.link_down(link.id);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    // A view that is set late, for links as they were, is ignored too.
    b.set_view(none_unlinked, links);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    b.set_view(View { unlinked: 1, ..View::ALONE }, b.linked().1);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    // The peer is gone.
    b.set_view(none_unlinked, b.linked().1);
    b.tick();
    assert_eq!(b.phase(), Phase::Ready);
}

#[test]
fn full_ends_when_an_expiry_makes_room() {
    let engine = alone(Some(1_000));
    engine.put("k", &Bytes::from(vec![0; 500]), Some(Duration::from_hours(1))).unwrap();
    assert!(engine.put("l", &Bytes::from(vec![0; 500]), None).is_err());
    assert!(engine.stats().full);
    let mut inner = engine.inner.lock();
    inner.replica.tick(View::ALONE, wall_ms() + millis(Duration::from_hours(1)));
    drop(inner);
    assert!(!engine.stats().full, "the expired value made room");
}
