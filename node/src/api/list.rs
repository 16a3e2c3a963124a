//! A listing in progress. A page is read only when the transport asks for it, which is after the client took the page
//! before, so a slow client holds one page and no lock.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use kvasir_proto::v1::{ListEntry, ListRequest, ListResponse};
use tonic::Status;

use super::calls::{Calls, version};
use super::deadline::Deadline;
use super::errors::not_served;
use super::identify::denied;
use super::{LIST_MESSAGE_BYTES, LIST_MESSAGE_ENTRIES, limits, page_token, text};
use crate::config::Verb;
use crate::engine::Value;
use crate::session::Session;
use crate::wall_clock::wall_ms;

/// Begins a listing. An error of the first page is an error of the call.
pub(super) async fn list(
    calls: Calls,
    request: ListRequest,
    deadline: Deadline,
) -> Result<BoxStream<'static, Result<ListResponse, Status>>, Status> {
    let ListRequest { prefix, limit, page_token, keys_only, session } = request;
    limits::prefix(&prefix, &calls.limits)?;
    calls.caller.may_all(Verb::Read, &prefix).map_err(denied)?;
    let after = match &page_token[..] {
        [] => None,
        token => Some(page_token::decode(token, &prefix)?),
    };
    let session = calls.enter(session, deadline).await?;
    let left = (limit > 0).then_some(limit as usize);
    let mut listing = Listing { calls, session, prefix, after, left, keys_only, done: false };
    let first = listing.next_message()?;
    let rest = stream::unfold(listing, async |mut listing| match listing.next_message() {
        Ok(None) => None,
        Ok(Some(message)) => Some((Ok(message), listing)),
        Err(status) => {
            listing.done = true;
            Some((Err(status), listing))
        }
    });
    Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
}

/// The position of a listing; the entries themselves are not kept.
struct Listing {
    calls: Calls,
    session: Option<Session>,
    prefix: String,
    after: Option<String>,
    /// How many entries are still wanted; `None`: all.
    left: Option<usize>,
    keys_only: bool,
    done: bool,
}

impl Listing {
    /// The next message; `None` after the last one.
    fn next_message(&mut self) -> Result<Option<ListResponse>, Status> {
        if self.done {
            return Ok(None);
        }
        let max = self.left.unwrap_or(usize::MAX).min(LIST_MESSAGE_ENTRIES);
        let now_ms = wall_ms();
        let page =
            self.calls.engine.list(&self.prefix, self.after.as_deref(), max, LIST_MESSAGE_BYTES).map_err(not_served)?;
        if let Some(session) = &mut self.session {
            self.calls.engine.saw_all(session);
            page.entries.iter().for_each(|(_, value)| session.saw(value.dot));
        }
        let Some((last, _)) = page.entries.last() else {
            self.done = true;
            // An empty listing is an answer too: in a session it needs a message for the token.
            return match self.session.take() {
                None => Ok(None),
                Some(session) => {
                    let session = self.calls.leave(Some(session))?;
                    Ok(Some(ListResponse { session, ..ListResponse::default() }))
                }
            };
        };
        let last = text(last)?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.entries.len());
        }
        let ended_by_limit = page.more && self.left == Some(0);
        self.done = !page.more || self.left == Some(0);
        let next_page_token =
            if ended_by_limit { page_token::encode(&self.prefix, last.as_bytes()).into() } else { Bytes::new() };
        self.after = Some(last);
        let entries =
            page.entries.into_iter().map(|(key, value)| self.entry(&key, value, now_ms)).collect::<Result<_, _>>()?;
        let session = self.calls.leave(self.session.clone())?;
        Ok(Some(ListResponse { entries, next_page_token, session }))
    }

    fn entry(&self, key: &Bytes, value: Value, now_ms: u64) -> Result<ListEntry, Status> {
        Ok(ListEntry {
            key: text(key)?,
            value: if self.keys_only { Bytes::new() } else { value.value },
            version: Some(version(value.dot)),
            ttl: limits::remaining(value.expires_ms, now_ms),
        })
    }
}
