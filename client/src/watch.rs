//! Watches that go on: a watch that lost its place, or its node, begins again with the content.

use crate::client::Client;
use crate::error::{Error, Failure};
use crate::kv::{self, Value, Version};
use crate::link::Current;
use crate::retry::Attempts;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1;

/// What happened to the keys that are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key has this value.
    Put {
        /// The key.
        key: String,
        /// Its value; empty when only keys were asked for.
        value: Value,
    },
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// The delete.
        version: Version,
    },
    /// A key's time came to its end.
    Expired {
        /// The key.
        key: String,
        /// The write whose value ended.
        version: Version,
    },
    /// What follows is the content as it is now, up to [`Event::Live`]: forget what was told before. The first event of
    /// a watch with content, and told again whenever a watch of either kind had to begin anew.
    Restarted,
    /// All content was told: what follows happens now.
    Live,
}

/// What a watch may ask for besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Tell first what is there.
    pub content_first: bool,
    /// Leave the values out.
    pub keys_only: bool,
}

struct Watching {
    client: Client,
    prefix: String,
    options: WatchOptions,
    open: Option<(tonic::Streaming<v1::WatchResponse>, Current)>,
    attempts: Option<Attempts>,
    ended: bool,
}

impl Client {
    /// Watches the keys that begin with `prefix`, for as long as the stream is read. When the node goes away or the
    /// watch loses its place there, it begins again, on another node if need be, with [`Event::Restarted`] and the
    /// whole content. It ends with an error, when no node can be reached within the retry budget.
    pub fn watch(&self, prefix: impl Into<String>, options: WatchOptions) -> BoxStream<'static, Result<Event, Error>> {
        let (client, prefix) = (self.clone(), prefix.into());
        let watching = Watching { client, prefix, options, open: None, attempts: None, ended: false };
        stream::unfold(watching, async |mut watching| {
            if watching.ended {
                return None;
            }
            let events = match watching.next().await {
                Ok(events) => events.into_iter().map(Ok).collect(),
                Err(error) => {
                    watching.ended = true;
                    vec![Err(error)]
                }
            };
            Some((stream::iter(events), watching))
        })
        .flatten()
        .boxed()
    }
}

impl Watching {
    async fn next(&mut self) -> Result<Vec<Event>, Error> {
        let Some((stream, via)) = &mut self.open else { return self.start().await };
        let failure = match stream.message().await {
            Ok(Some(message)) => {
                self.attempts = None;
                let lost = message.lost() != v1::WatchLost::No;
                let drains = message.lost() == v1::WatchLost::Draining;
                let mut events = message.events.into_iter().map(event).collect::<Result<Vec<_>, _>>()?;
                events.extend(message.live.then_some(Event::Live));
                if lost {
                    if drains {
                        self.client.link().renew(via);
                    }
                    self.again();
                }
                return Ok(events);
            }
            Ok(None) => Failure::Passing("the node ended the watch".to_owned()),
            Err(status) => Failure::from(status),
        };
        self.client.link().renew(via);
        self.again();
        let attempts = self.attempts.get_or_insert_with(|| self.client.attempts());
        self.client.pause(attempts, failure).await?;
        Ok(Vec::new())
    }

    /// What was missed shows in the content only.
    fn again(&mut self) {
        self.open = None;
        self.options.content_first = true;
    }

    async fn start(&mut self) -> Result<Vec<Event>, Error> {
        let WatchOptions { content_first, keys_only } = self.options;
        let request = v1::WatchRequest { prefix: self.prefix.clone(), content_first, keys_only };
        let attempts = self.attempts.get_or_insert_with(|| self.client.attempts());
        let via = self.client.link().current();
        let mut kv = self.client.kv(&via);
        match self.client.within(attempts.timeout(), &via, kv.watch(request)).await {
            Ok(answer) => {
                self.open = Some((answer.into_inner(), via));
                Ok(content_first.then_some(Event::Restarted).into_iter().collect())
            }
            Err(failure) => {
                self.client.pause(attempts, failure).await?;
                Ok(Vec::new())
            }
        }
    }
}

pub(crate) fn event(wire: v1::WatchEvent) -> Result<Event, Error> {
    let (kind, key) = (wire.kind(), wire.key);
    let version = kv::version(wire.version)?;
    match kind {
        v1::WatchKind::Put => {
            Ok(Event::Put { key, value: Value { value: wire.value, version, ttl: kv::ttl(wire.ttl)? } })
        }
        v1::WatchKind::Delete => Ok(Event::Deleted { key, version }),
        v1::WatchKind::Expire => Ok(Event::Expired { key, version }),
        v1::WatchKind::Unspecified => Err(Error::Answer("kind of event that this client knows")),
    }
}
