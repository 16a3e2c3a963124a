//! Peers that announce themselves on a NATS subject. Each node repeatedly announces the addresses of its peer port. A new node
//! asks, and the other nodes answer at once. An address that is no longer announced is forgotten.
//!
//! This file connects again itself instead of using the client's reconnects: so each attempt reads the credentials again, and
//! reports why it failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    time::Duration,
};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, Message, ServerAddr, Subscriber};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::provider::{MAX_ADDRESSES, Provider, Reporter, causes};
use crate::config::{NatsConfig, NatsLogin, SecretSource};

/// How often a node announces itself.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// How long an address is kept without an announcement. Three announcements may get lost.
const KEEP: Duration = Duration::from_secs(16);
/// How long a node waits for answers after it connected, unless `timeout` is shorter.
const GATHER: Duration = Duration::from_secs(1);
/// The longest wait between two attempts to connect, unless `reconnectWait` is longer. It is short: without the server a
/// starting node does not know its peers and is not ready.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The interval of pings. The connection is closed after two without an answer.
const PING: Duration = Duration::from_secs(5);
/// The longest message that is read, and the most addresses that are read from it.
const MAX_MESSAGE: usize = 1024;
const MAX_ANNOUNCED: usize = 8;
/// The most messages that wait to be read from each subscription, and that wait to be sent.
const QUEUED: usize = 256;

/// A node's announcement. With a reply subject it asks for answers as well.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Announcement {
    /// The format. Other formats are ignored.
    kvasir: u8,
    /// Where peers reach the node.
    addresses: Vec<SocketAddr>,
}

const FORMAT: u8 = 1;

pub(super) struct Nats {
    config: NatsConfig,
    me: SocketAddr,
    /// The addresses to announce.
    mine: Vec<SocketAddr>,
    /// Why `mine` may be out of date.
    unresolved: Option<String>,
    /// The announced addresses, each with the time of its last announcement.
    heard: BTreeMap<SocketAddr, Instant>,
}

impl Nats {
    /// `me` is announced unless the settings name another address.
    pub(super) fn new(config: NatsConfig, me: SocketAddr) -> Self {
        Self { config, me, mine: Vec::new(), unresolved: None, heard: BTreeMap::new() }
    }

    async fn connect(&self, lost: Lost) -> Result<Client, String> {
        let server = self.config.server.join(", ");
        let options = self.options(lost).await?;
        let addresses = self.config.server.iter().map(|it| it.parse()).collect::<Result<Vec<ServerAddr>, _>>();
        let addresses = addresses.map_err(|error| format!("cannot read the address of {server}: {error}"))?;
        match timeout(self.config.timeout * addresses.len() as u32, options.connect(addresses)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(format!("cannot connect to {server}: {}{}", causes(&error), remedy(error.kind()))),
            Err(_) => Err(format!("cannot connect to {server}: no answer within {:?}", self.config.timeout)),
        }
    }

    async fn options(&self, lost: Lost) -> Result<ConnectOptions, String> {
        let NatsConfig { server, timeout, login, ca_file, .. } = &self.config;
        let mut options = ConnectOptions::new()
            .name("kvasir-node")
            .connection_timeout(*timeout)
            .ping_interval(PING)
            .subscription_capacity(QUEUED)
            .client_capacity(QUEUED)
            .ignore_discovered_servers()
            .retain_servers_order()
            // Each server once; further attempts are made by `run`.
            .max_reconnects(server.len())
            .event_callback(move |event| {
                let why = match event {
                    Event::Disconnected | Event::Closed => Some("the connection was lost".to_owned()),
                    Event::LameDuckMode => Some("the server is shutting down".to_owned()),
                    // For example a missing permission. The connection stays open without what was refused.
                    Event::ServerError(error) => Some(format!("the server reports: {error}")),
                    Event::Connected | Event::Draining | Event::SlowConsumer(_) | Event::ClientError(_) => None,
                };
                lost.send_if_modified(|lost| {
                    let first = lost.is_none() && why.is_some();
                    if first {
                        *lost = why;
                    }
                    first
                });
                std::future::ready(())
            });
        if let Some(file) = ca_file {
            options = options.add_root_certificates(file.clone());
        }
        Ok(match login {
            None => options,
            Some(NatsLogin::Token(token)) => options.token(secret(token, "token").await?),
            Some(NatsLogin::User { user, password }) => {
                options.user_and_password(user.clone(), secret(password, "password").await?)
            }
            Some(NatsLogin::Credentials(file)) => options
                .credentials_file(file)
                .await
                .map_err(|error| format!("discovery.nats.credentialsFile: cannot use {}: {error}", file.display()))?,
        })
    }

    /// Resolves the addresses to announce. They stay as they are if that fails.
    async fn resolve_own_addresses(&mut self) {
        let port = self.config.discovery_port.unwrap_or(self.me.port());
        let Some(host) = &self.config.host else {
            self.mine = vec![SocketAddr::new(self.me.ip(), port)];
            return;
        };
        let failed = match timeout(self.config.timeout, tokio::net::lookup_host((host.as_str(), port))).await {
            Ok(Ok(found)) => {
                self.mine = found.collect::<BTreeSet<_>>().into_iter().take(MAX_ANNOUNCED).collect();
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {:?}", self.config.timeout)),
        };
        self.unresolved = failed.map(|why| format!("discovery.nats.host: cannot resolve {host}: {why}"));
    }

    /// Takes part until the connection ends, and returns why it ended.
    async fn take_part(&mut self, client: &Client, lost: &mut WasLost, reporter: &Reporter) -> String {
        let server = self.config.server.join(", ");
        tokio::select! {
            lost = lost.wait_for(Option::is_some) => match lost {
                Ok(why) => format!("{}: {server}", why.as_deref().unwrap_or_default()),
                Err(_) => format!("the connection was lost: {server}"),
            },
            ended = self.meet(client, reporter) => match ended {
                Ok(never) => match never {},
                Err(error) => format!("{error}: {server}"),
            },
        }
    }

    async fn meet(&mut self, client: &Client, reporter: &Reporter) -> Result<Infallible, String> {
        let subject = self.config.subject.clone();
        let inbox = client.new_inbox();
        let mut others = subscribe(client, &subject).await?;
        let mut answers = subscribe(client, &inbox).await?;
        // Without a connection no announcement could arrive, so all addresses get their full time again.
        let now = Instant::now();
        self.heard.values_mut().for_each(|heard| *heard = now);
        let complete = now + GATHER.min(self.config.timeout);
        let mut gathering = true;
        let mut announce = interval(ANNOUNCE);
        announce.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = others.next() => Some(message.ok_or("the connection was closed")?),
                message = answers.next() => Some(message.ok_or("the connection was closed")?),
                () = sleep_until(complete), if gathering => {
                    gathering = false;
                    None
                }
                _ = announce.tick() => {
                    self.resolve_own_addresses().await;
                    // At first this node asks, so that the other nodes answer at once.
                    let reply = gathering.then(|| inbox.clone());
                    self.announce(client, subject.clone(), reply).await?;
                    None
                }
            };
            if let Some(message) = message
                && self.record(&message)
                && let Some(asker) = message.reply.filter(|asker| asker.as_str() != inbox)
            {
                self.announce(client, asker.into_string(), None).await?;
            }
            self.heard.retain(|_, heard| heard.elapsed() < KEEP);
            let known = self.heard.keys().copied().collect();
            match &self.unresolved {
                _ if gathering => reporter.found_so_far(known),
                Some(error) => reporter.found_in_part(known, error.clone()),
                None => reporter.found(known),
            }
        }
    }

    async fn announce(&self, client: &Client, subject: String, reply: Option<String>) -> Result<(), String> {
        let text = write(self.mine.clone()).into();
        let sent = match reply {
            Some(reply) => client.publish_with_reply(subject, reply, text).await,
            None => client.publish(subject, text).await,
        };
        sent.map_err(|error| format!("cannot announce this node: {}", causes(&error)))
    }

    /// Records an announcement. Returns `false` for any other message.
    fn record(&mut self, message: &Message) -> bool {
        let addresses = match read(&message.payload) {
            Ok(addresses) => addresses,
            Err(why) => {
                debug!(why, "ignored a message that is not an announcement");
                return false;
            }
        };
        for address in addresses {
            if self.heard.len() < MAX_ADDRESSES || self.heard.contains_key(&address) {
                self.heard.insert(address, Instant::now());
            }
        }
        true
    }
}

/// The reachable addresses of an announcement, or why the message is not an announcement.
pub(super) fn read(payload: &[u8]) -> Result<Vec<SocketAddr>, String> {
    if payload.len() > MAX_MESSAGE {
        return Err(format!("it has {} bytes, at most {MAX_MESSAGE}", payload.len()));
    }
    // This also fails for the empty message by which the server reports that there are no subscribers.
    let Announcement { kvasir, addresses } = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if kvasir != FORMAT {
        return Err(format!("it is of format {kvasir}, this node speaks {FORMAT}"));
    }
    let is_reachable = |it: &SocketAddr| !(it.ip().is_unspecified() || it.ip().is_multicast() || it.port() == 0);
    Ok(addresses.into_iter().take(MAX_ANNOUNCED).filter(is_reachable).collect())
}

/// The message of an announcement.
pub(super) fn write(addresses: Vec<SocketAddr>) -> Vec<u8> {
    serde_json::to_vec(&Announcement { kvasir: FORMAT, addresses }).expect("numbers and addresses make JSON")
}

/// Why a connection was lost, once it is.
type Lost = watch::Sender<Option<String>>;
type WasLost = watch::Receiver<Option<String>>;

impl Provider for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn run(mut self: Box<Self>, reporter: Reporter) -> BoxFuture<'static, Infallible> {
        async move {
            let mut attempts = 0;
            loop {
                let (lost, mut was_lost) = watch::channel(None);
                let error = match self.connect(lost).await {
                    Ok(client) => {
                        attempts = 0;
                        self.take_part(&client, &mut was_lost, &reporter).await
                    }
                    Err(error) => {
                        attempts += 1;
                        error
                    }
                };
                reporter.failed(error);
                sleep(pause(&self.config, attempts)).await;
            }
        }
        .boxed()
    }
}

/// The wait after this many failed attempts in a row: `reconnectWait` up to `maxJoinAttempts`, doubled for each further one.
fn pause(config: &NatsConfig, attempts: u32) -> Duration {
    let beyond = attempts.saturating_sub(config.max_join_attempts).min(16);
    config.reconnect_wait.saturating_mul(1 << beyond).min(MAX_WAIT.max(config.reconnect_wait))
}

async fn subscribe(client: &Client, subject: &str) -> Result<Subscriber, String> {
    let subscribed = client.subscribe(subject.to_owned()).await;
    subscribed.map_err(|error| format!("cannot listen on {subject}: {}", causes(&error)))
}

fn remedy(kind: ConnectErrorKind) -> &'static str {
    match kind {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            "; check discovery.nats.user and password, token, or credentialsFile"
        }
        ConnectErrorKind::Tls => "; check discovery.nats.caFile",
        _ => "",
    }
}

/// The current secret. A file may have changed since it was last read.
async fn secret(source: &SecretSource, what: &str) -> Result<String, String> {
    let path = match source {
        SecretSource::Text(secret) => return Ok(secret.expose().to_owned()),
        SecretSource::File(path) => path,
    };
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| format!("discovery.nats.{what}File: cannot read {}: {error}", path.display()))?;
    // Editors and shells append a newline, which is not part of the secret.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nats() -> Nats {
        let config = NatsConfig {
            server: vec!["nats://127.0.0.1:4222".to_owned()],
            subject: "kvasir.test".to_owned(),
            timeout: Duration::from_secs(1),
            max_join_attempts: 3,
            reconnect_wait: Duration::from_secs(2),
            discovery_port: None,
            host: None,
            login: None,
            ca_file: None,
        };
        Nats::new(config, ([10, 0, 0, 1], 7071).into())
    }

    fn message(payload: &str) -> Message {
        Message {
            subject: "kvasir.test".into(),
            reply: None,
            payload: payload.to_owned().into(),
            headers: None,
            status: None,
            description: None,
            length: payload.len(),
        }
    }

    #[tokio::test]
    async fn nats_ignores_what_is_not_an_announcement() {
        let mut nats = nats();
        let long = format!(r#"{{"kvasir":1,"addresses":["10.0.0.1:1"]{}}}"#, " ".repeat(MAX_MESSAGE));
        for text in ["", "hello", "{}", r#"{"kvasir":2,"addresses":["10.0.0.1:1"]}"#, &long] {
            assert!(!nats.record(&message(text)), "{text:?}");
        }
        assert!(nats.heard.is_empty());
        // Unreachable addresses are skipped, the others are used.
        let text = r#"{"kvasir":1,"addresses":["0.0.0.0:7","224.0.0.1:7","10.0.0.1:0","10.0.0.2:7","[fd00::1]:7"],"later":true}"#;
        assert!(nats.record(&message(text)));
        let heard: Vec<_> = nats.heard.keys().map(ToString::to_string).collect();
        assert_eq!(heard, ["10.0.0.2:7", "[fd00::1]:7"]);
    }

    #[tokio::test]
    async fn nats_addresses_are_bounded() {
        let mut nats = nats();
        for port in 1..5_000 {
            nats.record(&message(&format!(r#"{{"kvasir":1,"addresses":["10.0.0.1:{port}"]}}"#)));
        }
        assert_eq!(nats.heard.len(), MAX_ADDRESSES);
        let many: Vec<_> = (1..30).map(|port| format!("\"10.0.0.2:{port}\"")).collect();
        let mut nats = self::nats();
        assert!(nats.record(&message(&format!(r#"{{"kvasir":1,"addresses":[{}]}}"#, many.join(",")))));
        assert_eq!(nats.heard.len(), MAX_ANNOUNCED);
    }

    #[tokio::test]
    async fn nats_announces_the_configured_address() {
        let mut nats = nats();
        nats.resolve_own_addresses().await;
        assert_eq!(nats.mine, ["10.0.0.1:7071".parse().unwrap()]);
        nats.config.discovery_port = Some(9);
        nats.resolve_own_addresses().await;
        assert_eq!(nats.mine, ["10.0.0.1:9".parse().unwrap()]);
        nats.config.host = Some("fd00::1".to_owned());
        nats.resolve_own_addresses().await;
        assert_eq!(nats.mine, ["[fd00::1]:9".parse().unwrap()]);
        nats.config.host = Some("no.such.host.invalid".to_owned());
        nats.resolve_own_addresses().await;
        assert_eq!(nats.mine, ["[fd00::1]:9".parse().unwrap()], "the last address stays");
        let error = nats.unresolved.unwrap();
        assert!(error.contains("discovery.nats.host: cannot resolve no.such.host.invalid"), "{error}");
    }

    #[test]
    fn nats_wait_grows_after_max_join_attempts() {
        let waits: Vec<_> = (0..9).map(|attempts| pause(&nats().config, attempts).as_secs()).collect();
        assert_eq!(waits, [2, 2, 2, 2, 4, 5, 5, 5, 5]);
        assert_eq!(pause(&nats().config, u32::MAX).as_secs(), 5);
        let patient = NatsConfig { reconnect_wait: Duration::from_mins(1), ..nats().config };
        assert_eq!(pause(&patient, u32::MAX).as_secs(), 60, "a longer reconnectWait is kept");
    }
}
