//! What happens to the nodes of the cluster, for as long as one listens: a stream that breaks begins again.

use crate::client::Client;
use crate::cluster::Role;
use crate::error::{Error, Failure};
use crate::link::Current;
use crate::retry::Attempts;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1;
use std::time::SystemTime;

/// What happened to the nodes of a cluster, as the answering one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterEvent {
    /// What follows begins with a [`Joined`](Self::Joined) for each node that is there: forget what was told before. The
    /// first event, and told again whenever the stream had to begin anew.
    Restarted,
    /// It came.
    Joined(Happened),
    /// It said goodbye.
    Left(Happened),
    /// It does not answer, or was replaced by a later life of itself.
    Failed(Happened),
    /// A majority of the members gave up on it. If it comes back, then as a new one.
    Evicted(Happened),
}

/// To whom something happened, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The node's name.
    pub name: String,
    /// Its process, as 16 hexadecimal digits.
    pub origin: String,
    /// What it is to the cluster.
    pub role: Role,
    /// When the answering node saw it, by its own clock.
    pub at: Option<SystemTime>,
}

struct Listening {
    client: Client,
    open: Option<(tonic::Streaming<v1::ClusterEvent>, Current)>,
    attempts: Option<Attempts>,
    ended: bool,
}

impl Client {
    /// Tells what happens to the nodes of the cluster, for as long as the stream is read. When the node goes away, or
    /// the events were not taken fast enough, it begins again, on another node if need be, with
    /// [`ClusterEvent::Restarted`]. It ends with an error, when no node can be reached within the retry budget.
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
    /// The next event, if one step brings one.
    async fn next(&mut self) -> Result<Option<ClusterEvent>, Error> {
        let Some((stream, via)) = &mut self.open else { return self.start().await };
        let failure = match stream.message().await {
            Ok(Some(message)) if message.kind() == v1::ClusterEventKind::Lagged => {
                // The node is as good as before: what was lost is told by beginning anew.
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

/// None for a kind that this release does not know: there is nothing to make of it.
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
