//! What calls wait for: that others hold a write, or that this node holds what
//! a session saw. A waiting call looks again whenever a peer said something;
//! how many may wait is bounded.

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::{Engine, ReadError};
use crate::clock::Dot;
use crate::replica::{Coverage, Holders, Need};
use crate::session::{MAX_ORIGINS, Session, TooWide};

/// Calls that may wait at a time.
pub const MAX_WAITING: usize = 4096;

/// A place among those that wait, until it is dropped.
#[derive(Debug)]
pub struct Place(#[allow(dead_code)] OwnedSemaphorePermit); // held, never read

/// Too many calls wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{MAX_WAITING} calls wait on this node for what other nodes do, which is the limit: try again, or another node"
)]
pub struct Crowded;

/// How far a wait for others came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Whether as many hold the write as was asked for.
    pub met: bool,
    /// Who holds it.
    pub holders: Holders,
}

/// Why a session's call is not carried out here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// This node was too slow.
    #[error("session: this node did not come to hold what the session saw in time: try again, or another node")]
    Behind,
    /// No node will ever be fast enough.
    #[error(
        "session: a write that it saw was lost with the nodes that held it: begin a new session with an empty token"
    )]
    Lost,
    /// Its token would be too long.
    #[error(
        "session: it saw writes of more than {MAX_ORIGINS} processes that not all nodes are known to hold: begin a new session with an empty token"
    )]
    TooWide,
    /// The node does not serve.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Engine {
    /// A place for a call that will wait.
    pub fn place(&self) -> Result<Place, Crowded> {
        self.places.clone().try_acquire_owned().map(Place).map_err(|_| Crowded)
    }

    /// Waits until as many hold this node's own write as are needed, at most
    /// until `end`.
    pub async fn acked(&self, _place: &Place, dot: Dot, need: Need, end: Instant) -> Acked {
        let mut last = None;
        let mut look = || {
            let inner = self.inner.lock();
            // A write of a seat that has ended is nobody's to count: it is
            // issued again under another dot, or was beaten.
            let mine = inner.replica.origin() == dot.origin;
            let holders = match last {
                Some(last) if !mine => last,
                _ => inner.replica.holders(dot.hlc),
            };
            last = Some(holders);
            (Acked { met: mine && need.met(&holders), holders }, mine)
        };
        let enough = self.heard.until(|| Some(look()).filter(|(acked, mine)| acked.met || !mine));
        let (acked, _) = timeout_at(end, enough).await.unwrap_or_else(|_| look());
        acked
    }

    /// Waits until this node holds what the session saw, at most until `end`.
    pub async fn catch_up(&self, session: &Session, end: Instant) -> Result<(), SessionError> {
        let look = || {
            let inner = self.inner.lock();
            if let Err(error) = self.readable(&inner) {
                return Some(Err(error.into()));
            }
            match session.coverage(&inner.replica) {
                Coverage::Covered => Some(Ok(())),
                Coverage::Behind => None,
                Coverage::Lost => Some(Err(SessionError::Lost)),
            }
        };
        let caught_up = timeout_at(end, self.heard.until(look)).await;
        caught_up.unwrap_or_else(|_| look().unwrap_or(Err(SessionError::Behind)))
    }

    /// Whether the node holds what the session saw, so that nothing is to be waited for.
    pub fn covers(&self, session: &Session) -> bool {
        session.coverage(&self.inner.lock().replica) == Coverage::Covered
    }

    /// The session's token, as short as it may be: what all nodes hold need not
    /// be asked of any.
    pub fn token(&self, session: &mut Session) -> Result<bytes::Bytes, SessionError> {
        session.shorten(&self.inner.lock().replica).map_err(|TooWide| SessionError::TooWide)?;
        Ok(session.encode())
    }
}
