//! The merge of several providers, the static list, and DNS against a server in this process that uses real packets.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hickory_resolver::{
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData, Record, RecordType, rdata::SRV},
    },
};
use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    time::timeout,
};

use super::*;
use crate::config::{DiscoveryConfig, DnsConfig, HostPort, StaticConfig};

fn at(addresses: &[&str]) -> BTreeSet<SocketAddr> {
    addresses.iter().map(|it| it.parse().unwrap()).collect()
}

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

async fn wait(view: &mut watch::Receiver<Arc<View>>, wanted: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
    let seen = timeout(PATIENCE, view.wait_for(wanted)).await.map(|seen| Arc::clone(&seen.unwrap()));
    seen.unwrap_or_else(|_| panic!("waited in vain; the view is {:?}", view.borrow()))
}

fn addresses(view: &View) -> BTreeSet<SocketAddr> {
    view.addresses.keys().copied().collect()
}

/// The node's own address, which only NATS needs.
const ME: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7071);

fn start_configured(config: &DiscoveryConfig) -> watch::Receiver<Arc<View>> {
    start(configured(config, ME))
}

/// A provider that reports what the test sends.
struct Scripted(&'static str, mpsc::Receiver<Result<BTreeSet<SocketAddr>, String>>);

impl Provider for Scripted {
    fn name(&self) -> &'static str {
        self.0
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            loop {
                match self.1.recv().await {
                    Some(Ok(addresses)) => reporter.found(addresses),
                    Some(Err(error)) => reporter.failed(error),
                    None => std::future::pending().await,
                }
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn providers_add_up_and_keep_findings_on_failure() {
    let (a, a_answers) = mpsc::channel(1);
    let (b, b_answers) = mpsc::channel(1);
    let mut view = start(vec![Box::new(Scripted("a", a_answers)), Box::new(Scripted("b", b_answers))]);
    assert!(!view.borrow().answered());

    a.send(Ok(at(&["10.0.0.1:1", "10.0.0.2:1"]))).await.unwrap();
    let seen = wait(&mut view, |view| view.addresses.len() == 2).await;
    assert!(!seen.answered(), "b has not answered");
    assert_eq!(seen.providers[0].found(), 2);

    b.send(Err("no route".to_owned())).await.unwrap();
    let seen = wait(&mut view, |view| view.providers[1].error.is_some()).await;
    assert!(!seen.answered(), "a failure is not an answer");

    b.send(Ok(at(&["10.0.0.2:1", "10.0.0.3:1"]))).await.unwrap();
    let seen = wait(&mut view, |view| view.addresses.len() == 3).await;
    assert!(seen.answered() && seen.providers[1].error.is_none());
    assert_eq!(seen.addresses[&"10.0.0.2:1".parse().unwrap()], "a");
    assert_eq!(seen.addresses[&"10.0.0.3:1".parse().unwrap()], "b");

    a.send(Err("gone".to_owned())).await.unwrap();
    let seen = wait(&mut view, |view| view.providers[0].error.is_some()).await;
    assert_eq!(seen.addresses.len(), 3, "the findings stay");
    assert_eq!(
        seen.providers[0],
        ProviderStatus {
            provider: "a",
            addresses: at(&["10.0.0.1:1", "10.0.0.2:1"]),
            error: Some("gone".to_owned()),
            answered: true,
            failures: 1,
        }
    );

    a.send(Ok(at(&[]))).await.unwrap();
    let seen = wait(&mut view, |view| view.providers[0].error.is_none()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.2:1", "10.0.0.3:1"]));
}

#[tokio::test]
async fn found_so_far_neither_answers_nor_ends_a_failure() {
    struct SoFar;
    impl Provider for SoFar {
        fn name(&self) -> &'static str {
            "so far"
        }

        fn run(self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
            reporter.failed("silent".to_owned());
            reporter.found_so_far(at(&["10.0.0.1:1"]));
            std::future::pending().boxed()
        }
    }
    let view = start(vec![Box::new(SoFar)]);
    let seen = view.borrow();
    assert_eq!((addresses(&seen), seen.answered()), (at(&["10.0.0.1:1"]), false));
    assert_eq!((seen.providers[0].error.as_deref(), seen.providers[0].failures), (Some("silent"), 1));
}

#[tokio::test]
async fn provider_addresses_are_bounded() {
    let (a, a_answers) = mpsc::channel(1);
    let mut view = start(vec![Box::new(Scripted("a", a_answers))]);
    a.send(Ok((1..=9_999).map(|port| ([10, 0, 0, 1], port).into()).collect())).await.unwrap();
    let seen = wait(&mut view, |view| view.answered()).await;
    assert_eq!((seen.addresses.len(), seen.providers[0].found()), (MAX_ADDRESSES, MAX_ADDRESSES as u32));
}

#[tokio::test]
async fn same_answer_again_does_not_notify() {
    let (a, a_answers) = mpsc::channel(1);
    let mut view = start(vec![Box::new(Scripted("a", a_answers))]);
    a.send(Ok(at(&["10.0.0.1:1"]))).await.unwrap();
    wait(&mut view, |view| view.answered()).await;
    view.mark_unchanged();
    a.send(Ok(at(&["10.0.0.1:1"]))).await.unwrap();
    // When the channel has room again, the provider has received the answer.
    a.send(Ok(at(&["10.0.0.1:1"]))).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!view.has_changed().unwrap());
}

#[tokio::test]
async fn view_without_providers_counts_as_answered() {
    let view = start_configured(&DiscoveryConfig::default());
    assert_eq!(**view.borrow(), View::default());
    assert!(view.borrow().answered());
}

#[tokio::test]
async fn providers_end_with_the_last_receiver() {
    let (a, a_answers) = mpsc::channel(1);
    drop(start(vec![Box::new(Scripted("a", a_answers))]));
    timeout(PATIENCE, a.closed()).await.unwrap();
}

#[tokio::test]
async fn static_list_has_names_and_both_families() {
    let list = |hosts: &[&str]| DiscoveryConfig {
        static_hosts: Some(StaticConfig { hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() }),
        ..DiscoveryConfig::default()
    };
    let mut view = start_configured(&list(&["10.0.0.1:1", "[fd00::1]:2", "localhost:3"]));
    let seen = wait(&mut view, |view| view.answered()).await;
    assert!(addresses(&seen).is_superset(&at(&["10.0.0.1:1", "[fd00::1]:2"])));
    assert!(seen.addresses.keys().any(|it| it.ip().is_loopback() && it.port() == 3), "{seen:?}");
    assert!(seen.addresses.values().all(|provider| *provider == "static"));
    assert_eq!(seen.providers[0].error, None);

    let mut view = start_configured(&list(&["10.0.0.1:1", "no.such.host.invalid:2"]));
    // An address does not wait for names.
    wait(&mut view, |view| !view.addresses.is_empty()).await;
    let seen = wait(&mut view, |view| view.providers[0].error.is_some()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:1"]));
    assert!(seen.providers[0].error.as_ref().unwrap().contains("no.such.host.invalid:2"));
}

#[tokio::test]
async fn static_names_are_resolved_in_each_round() {
    let config = StaticConfig { hosts: ["moving:1", "silent:2", "10.0.0.9:3"].map(|it| it.parse().unwrap()).into() };
    let moving = Arc::new(Mutex::new("10.0.0.1:1"));
    let silent = Arc::new(tokio::sync::Notify::new());
    let (current, released) = (Arc::clone(&moving), Arc::clone(&silent));
    let resolve = move |host: HostPort| {
        let (current, released) = (Arc::clone(&current), Arc::clone(&released));
        async move {
            if host.host == "silent" {
                released.notified().await;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            Ok(at(&[*current.lock()]))
        }
        .boxed()
    };
    let hosts = static_hosts::StaticHosts::new(config).resolving(resolve, Duration::from_millis(10));
    let mut view = start(vec![Box::new(hosts)]);
    let seen = wait(&mut view, |view| view.addresses.len() == 2).await;
    assert_eq!((addresses(&seen), seen.answered()), (at(&["10.0.0.1:1", "10.0.0.9:3"]), false));

    *moving.lock() = "10.0.0.2:1";
    silent.notify_one();
    let seen = wait(&mut view, |view| addresses(view) == at(&["10.0.0.2:1", "10.0.0.9:3"])).await;
    assert!(seen.answered());
    assert!(seen.providers[0].error.as_ref().unwrap().starts_with("cannot resolve silent:2: "), "{seen:?}");
}

/// The TTL of every record in seconds, longer than any test waits.
const TTL: u32 = 3600;

/// The server's answers: the addresses of each name, and whether it answers at all.
#[derive(Default)]
struct Zone {
    names: HashMap<String, Vec<&'static str>>,
    /// Names of SRV records, and the targets of each.
    services: HashMap<String, Vec<(&'static str, u16)>>,
    broken: bool,
    /// The type of records that fails.
    broken_for: Option<RecordType>,
    asked: Vec<String>,
}

/// A DNS server for one zone.
async fn dns_server() -> (SocketAddr, Arc<Mutex<Zone>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let zone = Arc::new(Mutex::new(Zone::default()));
    let served = Arc::clone(&zone);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let answer = reply(&question, &mut served.lock());
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, zone)
}

fn reply(question: &Message, zone: &mut Zone) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    let query = question.queries[0].clone();
    let name: Name = query.name().clone();
    zone.asked.push(name.to_string());
    let broken = zone.broken || zone.broken_for == Some(query.query_type());
    let services = zone.services.get(&name.to_string());
    match zone.names.get(&name.to_string()) {
        _ if broken => answer.metadata.response_code = ResponseCode::ServFail,
        None if let Some(services) = services => {
            for (target, port) in services.iter().filter(|_| query.query_type() == RecordType::SRV) {
                let srv = RData::SRV(SRV::new(0, 0, *port, target.parse().unwrap()));
                answer.add_answer(Record::from_rdata(name.clone(), TTL, srv));
            }
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(ips) => {
            for ip in ips {
                let ip: IpAddr = ip.parse().unwrap();
                let family = if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA };
                if query.query_type() == family {
                    answer.add_answer(Record::from_rdata(name.clone(), TTL, RData::from(ip)));
                }
            }
        }
    }
    answer.add_query(query);
    answer
}

fn dns(server: SocketAddr, domain_name: &str, ipv6: bool) -> watch::Receiver<Arc<View>> {
    let mut name_server = NameServerConfig::udp(server.ip());
    name_server.connections[0].port = server.port();
    let search = ["ns.svc.cluster.local.", "svc.cluster.local.", "cluster.local."].map(|it| it.parse().unwrap());
    let mut options = ResolverOpts::default();
    // Like in a pod.
    options.ndots = 5;
    options.timeout = Duration::from_millis(500);
    let resolver = ResolverConfig::from_parts(None, search.to_vec(), vec![name_server]);
    let config = DnsConfig {
        domain_name: domain_name.to_owned(),
        ipv6,
        port: (!domain_name.starts_with('_')).then_some(7071),
        server: Vec::new(),
    };
    start(vec![Box::new(dns::Dns::with_config(config, (resolver, options)))])
}

#[tokio::test]
async fn dns_follows_a_name_that_appears_and_changes() {
    let (server, zone) = dns_server().await;
    let set = |ips: Option<Vec<&'static str>>| {
        let mut zone = zone.lock();
        zone.names.clear();
        zone.names.extend(ips.map(|ips| ("demo-peers.ns.svc.cluster.local.".to_owned(), ips)));
    };
    let mut view = dns(server, "demo-peers.ns.svc", false);
    let seen = wait(&mut view, |view| view.answered()).await;
    assert_eq!(seen.providers[0].error, None, "a name that does not exist yet is not an error");
    assert_eq!(seen.addresses.len(), 0);

    set(Some(vec!["10.0.0.1", "10.0.0.2"]));
    let seen = wait(&mut view, |view| !view.addresses.is_empty()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:7071", "10.0.0.2:7071"]));
    assert_eq!(seen.providers[0].found(), 2);

    // Queried again before the TTL ends, without a cache.
    set(Some(vec!["10.0.0.2", "10.0.0.3"]));
    wait(&mut view, |view| addresses(view) == at(&["10.0.0.2:7071", "10.0.0.3:7071"])).await;

    zone.lock().broken = true;
    let seen = wait(&mut view, |view| view.providers[0].error.is_some()).await;
    assert!(seen.providers[0].error.as_ref().unwrap().contains("demo-peers.ns.svc"), "{seen:?}");
    assert_eq!(seen.addresses.len(), 2, "the findings stay");
    zone.lock().broken = false;

    set(None);
    let seen = wait(&mut view, |view| view.addresses.is_empty()).await;
    assert_eq!(seen.providers[0].error, None);
    let asked = &zone.lock().asked;
    assert!(
        asked.contains(&"demo-peers.ns.svc.ns.svc.cluster.local.".to_owned()),
        "the search list applies: {asked:?}"
    );
}

#[tokio::test]
async fn dns_queries_both_families_with_ipv6() {
    let (server, zone) = dns_server().await;
    zone.lock().names.insert("dual.example.".to_owned(), vec!["10.0.0.1", "fd00::1"]);
    zone.lock().names.insert("six.example.".to_owned(), vec!["fd00::6"]);
    let mut view = dns(server, "dual.example.", false);
    assert_eq!(addresses(&*wait(&mut view, |view| view.answered()).await), at(&["10.0.0.1:7071"]));
    let mut view = dns(server, "dual.example.", true);
    assert_eq!(addresses(&*wait(&mut view, |view| view.answered()).await), at(&["10.0.0.1:7071", "[fd00::1]:7071"]));
    let mut view = dns(server, "six.example.", true);
    assert_eq!(addresses(&*wait(&mut view, |view| view.answered()).await), at(&["[fd00::6]:7071"]));
}

#[tokio::test]
async fn dns_follows_srv_records() {
    let (server, zone) = dns_server().await;
    zone.lock()
        .services
        .insert("_peer._tcp.demo.".to_owned(), vec![("a.demo.", 1), ("b.demo.", 2), ("later.demo.", 3)]);
    zone.lock().names.insert("a.demo.".to_owned(), vec!["10.0.0.1", "fd00::1"]);
    zone.lock().names.insert("b.demo.".to_owned(), vec!["10.0.0.2"]);
    let mut view = dns(server, "_peer._tcp.demo.", true);
    let seen = wait(&mut view, |view| view.answered()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:1", "[fd00::1]:1", "10.0.0.2:2"]));
    assert_eq!(seen.providers[0].error, None, "a target that does not exist yet is not an error");

    zone.lock().services.insert("_peer._tcp.demo.".to_owned(), vec![("b.demo.", 9), (".", 0)]);
    wait(&mut view, |view| addresses(view) == at(&["10.0.0.2:9"])).await;
    zone.lock().services.clear();
    let seen = wait(&mut view, |view| view.addresses.is_empty()).await;
    assert_eq!(seen.providers[0].error, None);
    // No such records yet, which is not an error either.
    let mut view = dns(server, "_peer._tcp.other.", false);
    let seen = wait(&mut view, |view| view.answered()).await;
    assert_eq!((seen.addresses.len(), &seen.providers[0].error), (0, &None));
}

#[tokio::test]
async fn dns_failure_of_one_family_keeps_the_other() {
    let (server, zone) = dns_server().await;
    zone.lock().names.insert("dual.example.".to_owned(), vec!["10.0.0.1", "fd00::1"]);
    let mut view = dns(server, "dual.example.", true);
    wait(&mut view, |view| view.addresses.len() == 2).await;
    zone.lock().broken_for = Some(RecordType::AAAA);
    zone.lock().names.insert("dual.example.".to_owned(), vec!["10.0.0.2"]);
    let seen = wait(&mut view, |view| view.addresses.len() == 3).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:7071", "10.0.0.2:7071", "[fd00::1]:7071"]), "the findings stay");
    let error = seen.providers[0].error.clone().unwrap();
    assert!(error.contains("cannot look up the AAAA records of dual.example."), "{error}");
    assert!(seen.providers[0].failures > 0);
    zone.lock().broken_for = None;
    let seen = wait(&mut view, |view| view.providers[0].error.is_none()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.2:7071"]));
}

#[tokio::test]
async fn dns_servers_are_used_with_the_system_search_list() {
    let (server, zone) = dns_server().await;
    zone.lock().names.insert("demo-peers.ns.svc.cluster.local.".to_owned(), vec!["10.0.0.1"]);
    // As the kubelet writes it; this server does not answer.
    let text = "search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.253\noptions ndots:5\n";
    let system = hickory_resolver::system_conf::parse_resolv_conf(text).unwrap();
    let domain_name = "demo-peers".to_owned();
    let config = DnsConfig { domain_name, ipv6: false, port: Some(7071), server: vec![server] };
    let mut view = start(vec![Box::new(dns::Dns::with_config(config, system))]);
    let seen = wait(&mut view, |view| !view.addresses.is_empty()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:7071"]));
}

#[tokio::test]
async fn dns_server_that_was_away_is_used_again() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = socket.local_addr().unwrap();
    let mut view = dns(server, "demo.example.", false);
    let seen = wait(&mut view, |view| view.providers[0].error.is_some()).await;
    assert!(!seen.answered());
    tokio::spawn(async move {
        let mut zone = Zone::default();
        zone.names.insert("demo.example.".to_owned(), vec!["10.0.0.1"]);
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = reply(&Message::from_vec(&buffer[..length]).unwrap(), &mut zone);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    let seen = wait(&mut view, |view| view.answered()).await;
    assert_eq!(addresses(&seen), at(&["10.0.0.1:7071"]));
    assert_eq!(seen.providers[0].error, None);
}
