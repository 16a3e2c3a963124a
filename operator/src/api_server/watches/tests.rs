//! Against an API server that becomes unreachable, on a paused clock.

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use prometheus_client::encoding::text::encode;

use super::*;
use crate::fake::Fake;

type Events = BoxStream<'static, watcher::Result<Event<ConfigMap>>>;

/// Time within which a watch must be up again.
const SOON: Duration = Duration::from_secs(5);

fn watching(fake: &Fake, watches: &Watches) -> Events {
    let api = Api::default_namespaced(fake.client());
    events(api, watcher::Config::default(), watches.begin("ConfigMap")).boxed()
}

/// Reads events until a list is complete.
async fn listed(events: &mut Events) {
    while !matches!(events.next().await, Some(Ok(Event::InitDone))) {}
}

/// Lets time pass while the watch works.
async fn pass(events: &mut Events, seconds: u64) {
    let all = async { while events.next().await.is_some() {} };
    timeout(Duration::from_secs(seconds), all).await.expect_err("a watch does not end");
}

#[tokio::test(start_paused = true)]
async fn watch_is_back_soon_after_any_outage() {
    for outage in [1, 9, 74, 600] {
        let (fake, watches) = (Fake::default(), Watches::default());
        let mut events = watching(&fake, &watches);
        listed(&mut events).await;
        fake.leave();
        pass(&mut events, outage).await;
        fake.back();
        timeout(SOON, listed(&mut events)).await.unwrap_or_else(|_| panic!("still broken after {outage} s away"));
    }
}

#[tokio::test(start_paused = true)]
async fn watch_is_back_soon_after_flapping() {
    let (fake, watches) = (Fake::default(), Watches::default());
    let mut events = watching(&fake, &watches);
    for round in 0..30 {
        fake.leave();
        pass(&mut events, 1 + round % 4).await;
        fake.back();
        pass(&mut events, round % 2).await;
    }
    fake.leave();
    pass(&mut events, 3).await;
    fake.back();
    timeout(SOON, listed(&mut events)).await.expect("still broken");
}

#[tokio::test(start_paused = true)]
async fn watch_that_is_broken_is_reported() {
    let (fake, watches) = (Fake::default(), Watches::default());
    let mut registry = Registry::default();
    watches.register(&mut registry);
    let metrics = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    let mut events = watching(&fake, &watches);
    assert_eq!(watches.broken().as_deref(), Some("the watch of ConfigMap is broken for 0 s"), "it has not listed yet");
    listed(&mut events).await;
    assert_eq!(watches.broken(), None);
    assert!(metrics().contains(r#"kvasir_operator_watch_up{kind="ConfigMap"} 1"#), "{}", metrics());
    fake.leave();
    pass(&mut events, 20).await;
    assert_eq!(watches.broken(), None, "a short outage is no reason to be taken out of service");
    assert!(metrics().contains(r#"kvasir_operator_watch_up{kind="ConfigMap"} 0"#), "{}", metrics());
    pass(&mut events, 20).await;
    assert_eq!(watches.broken().as_deref(), Some("the watch of ConfigMap is broken for 40 s"));
    fake.back();
    listed(&mut events).await;
    assert_eq!(watches.broken(), None);
    drop(events);
    fake.leave();
    tokio::time::advance(Duration::from_mins(5)).await;
    assert_eq!(watches.broken(), None, "a dropped watch does not count");
    assert!(!metrics().contains("ConfigMap"), "{}", metrics());
}

#[tokio::test(start_paused = true)]
async fn watch_that_fails_after_each_list_is_patient() {
    let (fake, watches) = (Fake::default(), Watches::default());
    fake.forbid_watches();
    let mut events = watching(&fake, &watches);
    pass(&mut events, 60).await;
    let lists = fake.count(&http::Method::GET, "/configmaps") / 2;
    assert!((25..=70).contains(&lists), "{lists} lists in a minute");
}
