//! Reads a listing page by page, from any node.

use crate::Error;
use crate::calls::{Token, given, replace};
use crate::client::Client;
use crate::kv::{self, Entry, ListOptions};
use crate::link::Current;
use crate::retry::Attempts;
use bytes::Bytes;
use futures::Stream;
use kvasir_proto::v1;
use std::collections::VecDeque;

/// Entries of one page, which is the most that a broken connection makes us read again.
const PAGE: u32 = 1000;

/// A listing in progress. Keys come in ascending order on every node, so a page that broke off is requested again, if
/// necessary from another node, and the keys that were already returned are skipped.
struct Walk<'a> {
    client: Client,
    token: Token<'a>,
    prefix: String,
    keys_only: bool,
    /// How many entries the caller still wants.
    left: Option<u64>,
    /// Where the current page begins.
    page_token: Bytes,
    last_key: Option<String>,
    ready: VecDeque<v1::ListEntry>,
    open: Option<Page>,
    attempts: Option<Attempts>,
}

struct Page {
    stream: tonic::Streaming<v1::ListResponse>,
    via: Current,
    next: Bytes,
}

pub(crate) fn list(
    client: Client,
    prefix: String,
    options: ListOptions,
    token: Token<'_>,
) -> impl Stream<Item = Result<Entry, Error>> + Send {
    let ListOptions { limit, keys_only } = options;
    let walk = Walk {
        client,
        token,
        prefix,
        keys_only,
        left: limit,
        page_token: Bytes::new(),
        last_key: None,
        ready: VecDeque::new(),
        open: None,
        attempts: None,
    };
    futures::stream::try_unfold(Some(walk), |walk| async move {
        let Some(mut walk) = walk else { return Ok(None) };
        Ok(walk.next().await?.map(|entry| (entry, Some(walk))))
    })
}

impl Walk<'_> {
    async fn next(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            if let Some(entry) = self.ready.pop_front() {
                if self.last_key.as_ref().is_some_and(|last| *last >= entry.key) {
                    continue;
                }
                let entry = kv::entry(entry)?;
                self.attempts = None; // a new key is progress; a message of known keys is not
                self.last_key = Some(entry.key.clone());
                self.left = self.left.map(|left| left - 1);
                return Ok(Some(entry));
            }
            match self.read().await? {
                Read::More => {}
                Read::End => return Ok(None),
            }
        }
    }

    /// Opens the next page, or reads a message of the open page.
    async fn read(&mut self) -> Result<Read, Error> {
        let timeout = self.attempts.get_or_insert_with(|| self.client.attempts()).timeout();
        let failure = if let Some(page) = &mut self.open {
            match self.client.within(timeout, &page.via, page.stream.message()).await {
                Ok(Some(message)) => {
                    page.next = message.next_page_token;
                    replace(self.token.as_deref_mut(), message.session);
                    self.ready.extend(message.entries);
                    return Ok(Read::More);
                }
                Ok(None) => return self.turn(),
                Err(failure) => failure,
            }
        } else {
            let via = self.client.link().current();
            let mut kv = self.client.kv(&via);
            match self.client.within(timeout, &via, kv.list(self.request())).await {
                Ok(answer) => {
                    self.open = Some(Page { stream: answer.into_inner(), via, next: Bytes::new() });
                    return Ok(Read::More);
                }
                Err(failure) => failure,
            }
        };
        self.open = None;
        let attempts = self.attempts.get_or_insert_with(|| self.client.attempts());
        self.client.pause(attempts, failure).await?;
        Ok(Read::More)
    }

    fn request(&self) -> v1::ListRequest {
        v1::ListRequest {
            prefix: self.prefix.clone(),
            limit: self.left.map_or(PAGE, |left| u32::try_from(left).unwrap_or(PAGE).min(PAGE)),
            page_token: self.page_token.clone(),
            keys_only: self.keys_only,
            session: given(&self.token),
        }
    }

    /// Ends the open page, and says whether another follows.
    fn turn(&mut self) -> Result<Read, Error> {
        self.attempts = None;
        let next = self.open.take().map(|page| page.next).unwrap_or_default();
        if next.is_empty() {
            return Ok(Read::End);
        }
        if next == self.page_token {
            return Err(Error::Answer("page token that leads on")); // or this would be an endless loop
        }
        self.page_token = next;
        Ok(Read::More)
    }
}

enum Read {
    More,
    End,
}
