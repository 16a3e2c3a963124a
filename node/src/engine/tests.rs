//! The engine of one node, and of two that are joined by hand.

use kvasir_proto::peer::v1::Message;

use super::*;
use crate::store::Store;

fn options(origin: u64, max_memory: Option<u64>) -> Options {
    Options {
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
fn lists_by_prefix_in_pages_and_skips_what_ended() {
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
fn a_full_node_refuses_puts_and_takes_deletes() {
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
fn founding_is_shown_once_there_is_a_map() {
    assert_eq!(Engine::new(&options(7, None)).stats().founding, None, "it has no map yet");
    let before = wall_ms();
    let founding = alone(None).stats().founding.unwrap();
    assert!(founding.by == 7 && (before..=wall_ms()).contains(&founding.at_ms), "{founding:?}");
    let (a, b, _) = pair();
    assert_eq!(a.stats().founding, b.stats().founding, "one map, one founding");
}

#[test]
fn a_draining_node_serves_reads_only() {
    let engine = alone(None);
    engine.put("k", &Bytes::from_static(b"v"), None).unwrap();
    engine.drain();
    assert_eq!(engine.put("k", &Bytes::new(), None), Err(WriteError::NotReady(Phase::Draining)));
    assert!(engine.read("k").unwrap().value.is_some());
}

/// Joins two engines with links that pass messages at once.
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

/// A founded node and one that took its snapshot, and the links between them.
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
async fn a_write_is_acked_once_the_other_holds_it_and_the_answer_says_how_far_it_came() {
    let (a, b, links) = pair();
    let place = a.place().unwrap();
    let dot = a.put("k", &bytes("v"), None).unwrap();
    let soon = || tokio::time::Instant::now() + Duration::from_millis(30);
    let late = a.acked(&place, dot, Need::Count(1), soon()).await;
    assert_eq!((late.met, late.holders.peers, late.holders.voters), (false, 0, 1));
    assert!(a.read("k").unwrap().value.is_some(), "the write stays");
    let waits = tokio::spawn({
        let (a, end) = (a.clone(), tokio::time::Instant::now() + Duration::from_secs(30));
        async move { a.acked(&a.place().unwrap(), dot, Need::All, end).await }
    });
    tokio::task::yield_now().await;
    pass(&a, &b, links);
    let acked = waits.await.unwrap();
    assert_eq!((acked.met, acked.holders.peers, acked.holders.voters), (true, 1, 2));
    assert!(!a.acked(&place, dot, Need::Count(2), soon()).await.met, "one peer is not two");
}

#[test]
fn places_for_those_who_wait_are_bounded_and_given_back() {
    let engine = alone(None);
    let places: Vec<_> = (0..MAX_WAITING).map(|_| engine.place().unwrap()).collect();
    assert_eq!(engine.place().unwrap_err(), Crowded);
    assert_eq!(engine.stats().waiting, MAX_WAITING);
    drop(places);
    assert!(engine.place().is_ok());
}

#[tokio::test]
async fn a_session_waits_for_what_it_saw_and_not_for_ever() {
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

fn told(watch: &Watch) -> Told {
    use futures::FutureExt as _;
    watch.next(100, 1 << 20).now_or_never().unwrap_or_default()
}

fn words(told: &Told) -> Vec<String> {
    let word = |(key, happened): &(Bytes, Happened)| {
        let key = String::from_utf8_lossy(key);
        match happened {
            Happened::Put(value) => format!("{key}={}", String::from_utf8_lossy(&value.value)),
            Happened::Deleted(_) => format!("{key} deleted"),
            Happened::Expired(_) => format!("{key} expired"),
        }
    };
    told.events.iter().map(word).collect()
}

#[test]
fn a_watch_tells_the_content_and_then_what_happens_under_its_prefix() {
    let engine = alone(None);
    for key in ["a/1", "a/2", "b/1"] {
        engine.put(key, &bytes("old"), None).unwrap();
    }
    let watch = engine.watch("a/", true).unwrap();
    let content = told(&watch);
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
    assert_eq!(words(&told(&watch)), ["a/1=new", "a/2 deleted", "a/3=short", "a/3 expired"]);
    assert_eq!(told(&watch), Told::default());
    drop(watch);
    assert_eq!(engine.stats().watches, 0);
    engine.put("a/1", &bytes("unseen"), None).unwrap();
    assert_eq!(engine.inner.lock().replica.take_changes(), [], "nothing is kept for nobody");
}

#[test]
fn a_watch_from_now_says_when_it_is_live() {
    let engine = alone(None);
    engine.put("k", &bytes("old"), None).unwrap();
    let watch = engine.watch("", false).unwrap();
    assert_eq!(told(&watch), Told { live: true, ..Told::default() });
    engine.put("k", &bytes("new"), None).unwrap();
    assert_eq!(words(&told(&watch)), ["k=new"]);
}

#[test]
fn what_changes_during_the_content_is_never_told_older_after_newer() {
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
    // One behind the walk, one ahead of it.
    engine.put("a", &bytes("2"), None).unwrap();
    engine.put("d", &bytes("2"), None).unwrap();
    engine.delete("c").unwrap();
    assert_eq!(words(&two(&watch)), ["a=2"]);
    let rest = two(&watch);
    assert_eq!((words(&rest), rest.live), (vec!["d=2".to_owned()], true));
}

#[test]
fn a_slow_watch_is_told_that_it_lost_its_place_and_keeps_nothing() {
    let engine = alone(None);
    let watch = engine.watch("", false).unwrap();
    let other = engine.watch("other", false).unwrap();
    for _ in 0..=QUEUE_EVENTS {
        engine.put("k", &bytes("v"), None).unwrap();
    }
    assert_eq!(told(&watch), Told { lost: Some(Lost::Slow), ..Told::default() });
    let large = Bytes::from(vec![0; 1 << 20]);
    let watch = engine.watch("large", false).unwrap();
    for _ in 0..=QUEUE_BYTES >> 20 {
        engine.put("large", &large, None).unwrap();
    }
    assert_eq!(told(&watch).lost, Some(Lost::Slow));
    assert_eq!(told(&other).lost, None, "what is not under a prefix fills no queue");
}

#[test]
fn watches_are_bounded() {
    let engine = alone(None);
    let watches: Vec<_> = (0..MAX_WATCHES).map(|_| engine.watch("", false).unwrap()).collect();
    assert!(matches!(engine.watch("", false), Err(WatchError::Crowded)));
    drop(watches);
    assert!(engine.watch("", false).is_ok());
}

#[test]
fn a_touch_gives_another_end_and_leaves_the_value() {
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
fn a_touch_that_gives_an_end_needs_room_for_it() {
    let engine = alone(Some(Store::cost_of(1, 1) + Store::COST_OF_END - 1));
    engine.put("k", &bytes("v"), None).unwrap();
    assert!(matches!(engine.touch("k", Some(Duration::from_mins(1))), Err(WriteError::Full(_))));
    assert!(engine.touch("k", None).unwrap().is_some() && engine.read("k").unwrap().value.is_some());
}

#[test]
fn one_whose_seat_was_ended_drops_its_links_and_takes_another_origin() {
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
    assert!(b.link_up(8, a.id()).is_none(), "a handshake as the old one is void");
}

#[test]
fn one_that_has_just_lost_its_links_does_not_take_itself_for_the_only_one() {
    let join_timeout = Duration::from_hours(1);
    let options = Options { serve_alone: false, join_timeout, ..options(8, None) };
    let nobody_unlinked = View::ALONE;
    let a = alone(None);
    let b = Engine::new(&options);
    let link = b.link_up(8, a.id()).unwrap();
    let (linked, links) = b.linked();
    assert_eq!(linked, [7]);
    b.set_view(nobody_unlinked, links);
    b.tick();
    assert_eq!(b.phase(), Phase::Syncing, "it waits for what its peer holds");
    // Before it was looked again who is there.
    b.link_down(link.id);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    // That the one who looks was overtaken changes nothing.
    b.set_view(nobody_unlinked, links);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    b.set_view(View { unlinked: 1, ..View::ALONE }, b.linked().1);
    b.tick();
    assert_eq!(b.phase(), Phase::Joining);
    // Nobody else is there any more.
    b.set_view(nobody_unlinked, b.linked().1);
    b.tick();
    assert_eq!(b.phase(), Phase::Ready);
}
#[test]
fn a_node_is_full_no_more_once_anything_made_room() {
    let engine = alone(Some(1_000));
    engine.put("k", &Bytes::from(vec![0; 500]), Some(Duration::from_hours(1))).unwrap();
    assert!(engine.put("l", &Bytes::from(vec![0; 500]), None).is_err());
    assert!(engine.stats().full);
    let mut inner = engine.inner.lock();
    inner.replica.tick(View::ALONE, wall_ms() + millis(Duration::from_hours(1)));
    drop(inner);
    assert!(!engine.stats().full, "what expired made room");
}
