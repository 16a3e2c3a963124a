//! The stream of cluster events. A stream that breaks is opened again.

use crate::client::Client;
use crate::cluster::Role;
use crate::error::{Error, Failure};
use crate::link::Current;
use crate::retry::Attempts;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1;
use std::time::SystemTime;

/// What happened to a node of the cluster, as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// The stream starts over: discard the known nodes. A [`Joined`](Self::Joined) for each current node follows. This is
    /// the first event, and comes again whenever the stream had to be opened again.
    Restarted,
    /// The node joined.
    Joined(Happened),
    /// The node left.
    Left(Happened),
    /// The node does not answer, or was replaced by a later process or origin of the same name.
    Failed(Happened),
    /// A majority of the members evicted the node. If it rejoins, it has a new origin.
    Evicted(Happened),
}

/// The node of an event, and the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The node's name.
    pub name: String,
    /// The node's origin, as 16 hexadecimal digits.
    pub origin: String,
    /// The node's role.
    pub role: Role,
    /// When the answering node saw the event, by its own clock.
    pub at: Option<SystemTime>,
}

struct Listening {
    client: Client,
    open: Option<(tonic::Streaming<v1::ClusterEvent>, Current)>,
    attempts: Option<Attempts>,
    ended: bool,
}

impl Client {
    /// Streams what happens to the nodes of the cluster.
    ///
    /// If the node goes away, or events were not read fast enough, the stream starts over, if necessary on another node,
    /// with [`ClusterEvent::Restarted`]. It ends with an error if no node can be reached within the retry budget.
    ///
    /// ```no_run
    /// # async fn run(client: kvasir_client::Client) -> Result<(), kvasir_client::Error> {
    /// use futures::TryStreamExt as _;
    /// use kvasir_client::ClusterEvent;
    ///
    /// let mut events = client.events();
    /// while let Some(event) = events.try_next().await? {
    ///     if let ClusterEvent::Failed(node) = event {
    ///         println!("{} does not answer", node.name);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self) -> BoxStream<'static, Result<ClusterEvent, Error>> {
        let listening = Listening { client: self.clone(), open: None, attempts: None, ended: false };
        stream::unfold(listening, async |mut listening| {
            if listening.ended {
                return None;
            }
            let event = match listening.next().await {
                Ok(event) => event.map(Ok),
                Err(error) => {
                    listening.ended = true;
                    Some(Err(error))
                }
            };
            Some((stream::iter(event), listening))
        })
        .flatten()
        .boxed()
    }
}

impl Listening {
    /// One step, which may bring an event.
    async fn next(&mut self) -> Result<Option<ClusterEvent>, Error> {
        let Some((stream, via)) = &mut self.open else { return self.start().await };
        let failure = match stream.message().await {
            Ok(Some(message)) if message.kind() == v1::ClusterEventKind::Lagged => {
                // The node is still good: opening the stream again makes up for the lost events.
                self.open = None;
                return Ok(None);
            }
            Ok(Some(message)) => {
                self.attempts = None;
                return Ok(event(message));
            }
            Ok(None) => Failure::Passing("the node ended the events".to_owned()),
            Err(status) => Failure::from(status),
        };
        self.client.link().renew(via);
        self.open = None;
        let attempts = self.attempts.get_or_insert_with(|| self.client.attempts());
        self.client.pause(attempts, failure).await?;
        Ok(None)
    }

    async fn start(&mut self) -> Result<Option<ClusterEvent>, Error> {
        let attempts = self.attempts.get_or_insert_with(|| self.client.attempts());
        let via = self.client.link().current();
        let mut cluster = self.client.cluster(&via);
        match self.client.within(attempts.timeout(), &via, cluster.events(v1::EventsRequest {})).await {
            Ok(answer) => {
                self.open = Some((answer.into_inner(), via));
                Ok(Some(ClusterEvent::Restarted))
            }
            Err(failure) => {
                self.client.pause(attempts, failure).await?;
                Ok(None)
            }
        }
    }
}

/// `None` for a kind of event that this release does not know.
pub(crate) fn event(wire: v1::ClusterEvent) -> Option<ClusterEvent> {
    let (kind, role) = (wire.kind(), wire.role().into());
    let at = wire.at.and_then(|at| SystemTime::try_from(at).ok());
    let happened = Happened { name: wire.name, origin: wire.origin, role, at };
    match kind {
        v1::ClusterEventKind::Joined => Some(ClusterEvent::Joined(happened)),
        v1::ClusterEventKind::Left => Some(ClusterEvent::Left(happened)),
        v1::ClusterEventKind::Failed => Some(ClusterEvent::Failed(happened)),
        v1::ClusterEventKind::Evicted => Some(ClusterEvent::Evicted(happened)),
        v1::ClusterEventKind::Lagged | v1::ClusterEventKind::Unspecified => None,
    }
}
