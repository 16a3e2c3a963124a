//! Calls that wait: until other nodes cover a write, or until this node covers a session. A waiting call checks again
//! after each message of a peer. How many calls may wait is bounded.

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::{Engine, ReadError};
use crate::clock::Dot;
use crate::replica::{Coverage, Holders, Need};
use crate::session::{MAX_ORIGINS, Session, TooWide};

/// How many calls may wait at a time.
pub const MAX_WAITING: usize = 4096;

/// Permission to wait; returned when it is dropped.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code)] OwnedSemaphorePermit); // held, never read

/// Too many calls wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_WAITING} calls on this node wait for other nodes, which is the limit: try again, or ask another node")]
pub struct TooManyWaiting;

/// The outcome of a wait for other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Whether as many nodes cover the write as were asked for.
    pub met: bool,
    /// The nodes that cover it.
    pub holders: Holders,
}

/// Why a call in a session is not executed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// This node does not cover the session in time.
    #[error("session: this node did not receive what the session saw in time: try again, or ask another node")]
    Behind,
    /// No node can ever cover the session.
    #[error(
        "session: a write that it saw was lost with the nodes that held it: begin a new session with an empty token"
    )]
    Lost,
    /// The session's token would be too long.
    #[error(
        "session: it saw writes of more than {MAX_ORIGINS} processes that not all nodes are known to hold: begin a new \
         session with an empty token"
    )]
    TooWide,
    /// The node does not serve.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Engine {
    /// Reserves a permit for a call that will wait.
    pub fn permit(&self) -> Result<Permit, TooManyWaiting> {
        self.permits.clone().try_acquire_owned().map(Permit).map_err(|_| TooManyWaiting)
    }

    /// Waits until as many nodes cover this node's own write as are needed, at most until `end`.
    pub async fn acked(&self, _permit: &Permit, dot: Dot, need: Need, end: Instant) -> Acked {
        let mut last = None;
        let mut check = || {
            let inner = self.inner.lock();
            // After a rejoin the old origin's write cannot be acknowledged: it was beaten, or is reissued under another
            // dot. The holders from before the rejoin are the answer.
            let mine = inner.replica.origin() == dot.origin;
            let holders = match last {
                Some(last) if !mine => last,
                _ => inner.replica.holders(dot.hlc),
            };
            last = Some(holders);
            (Acked { met: mine && need.met(&holders), holders }, mine)
        };
        let done = self.wakeups.until(|| Some(check()).filter(|(acked, mine)| acked.met || !mine));
        let (acked, _) = timeout_at(end, done).await.unwrap_or_else(|_| check());
        acked
    }

    /// Waits until this node covers the session, at most until `end`.
    pub async fn catch_up(&self, session: &Session, end: Instant) -> Result<(), SessionError> {
        let check = || {
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
        let caught_up = timeout_at(end, self.wakeups.until(check)).await;
        caught_up.unwrap_or_else(|_| check().unwrap_or(Err(SessionError::Behind)))
    }

    /// Whether this node covers the session already.
    pub fn covers(&self, session: &Session) -> bool {
        session.coverage(&self.inner.lock().replica) == Coverage::Covered
    }

    /// The session's token, without the writes that all nodes are known to hold.
    pub fn token(&self, session: &mut Session) -> Result<bytes::Bytes, SessionError> {
        session.shorten(&self.inner.lock().replica).map_err(|TooWide| SessionError::TooWide)?;
        Ok(session.encode())
    }
}
