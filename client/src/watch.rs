//! Watches. A watch that lost its place or its node starts over with the content.

use crate::client::Client;
use crate::error::{Error, Failure};
use crate::kv::{self, Value, Version};
use crate::link::Current;
use crate::retry::Attempts;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1;

/// What happened to a watched key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key has this value now.
    Put {
        /// The key.
        key: String,
        /// The value; empty with `keys_only`.
        value: Value,
    },
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// The write that deleted the key.
        version: Version,
    },
    /// A key's TTL ended.
    Expired {
        /// The key.
        key: String,
        /// The write whose value expired.
        version: Version,
    },
    /// The watch starts over: discard the known keys. The current content follows, up to [`Event::Live`]. This is the first
    /// event of a watch with `content_first`, and comes again whenever any watch had to start over.
    Restarted,
    /// The content is complete: further events are changes.
    Live,
}

/// Options of a watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Send the existing keys first.
    pub content_first: bool,
    /// Omit the values.
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
    /// Watches the keys that begin with `prefix`.
    ///
    /// If the node goes away or the watch loses its place there, it starts over, if necessary on another node, with
    /// [`Event::Restarted`] and the whole content. It ends with an error if no node can be reached within the retry
    /// budget.
    ///
    /// ```no_run
    /// # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
    /// use futures::TryStreamExt as _;
    /// use kvasir_client::{Event, WatchOptions};
    ///
    /// let mut events = client.watch("config/", WatchOptions { content_first: true, keys_only: false });
    /// while let Some(event) = events.try_next().await? {
    ///     match event {
    ///         Event::Put { key, value } => println!("{key} = {:?}", value.value),
    ///         Event::Deleted { key, .. } | Event::Expired { key, .. } => println!("{key} is gone"),
    ///         Event::Restarted => println!("the content follows"),
    ///         Event::Live => println!("changes follow"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
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

    /// Starts over with the content, which shows what was missed.
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
