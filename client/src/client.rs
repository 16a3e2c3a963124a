//! The client: makes attempts until a call succeeds or fails for good. `retry` decides when and how often, `link` over
//! which connection; the calls themselves are in `calls` and `cluster`.

use crate::builder::Settings;
use crate::credentials::Authorised;
use crate::error::{Error, Failure};
use crate::link::{Current, Link};
use crate::retry::Attempts;
use kvasir_proto::v1::cluster_client::ClusterClient;
use kvasir_proto::v1::kv_client::KvClient;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::Response;

/// A handle to a cluster through one of its nodes. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    settings: Settings,
}

impl Client {
    pub(crate) fn new(link: Link, settings: Settings) -> Self {
        Self(Arc::new(Inner { link, settings }))
    }

    /// A request with the client's timeout as its deadline. A node that has to wait (for a session, an `ack`) stops in
    /// time to answer with the reason.
    pub(crate) fn timed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.settings().request_timeout);
        request
    }

    /// Makes attempts until one succeeds or fails for good.
    pub(crate) async fn call<T, F, A>(&self, attempt: F) -> Result<T, Error>
    where
        F: Fn(&Current) -> A,
        A: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let mut attempts = self.attempts();
        loop {
            let via = self.link().current();
            match self.within(attempts.timeout(), &via, attempt(&via)).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(failure) => self.pause(&mut attempts, failure).await?,
            }
        }
    }

    /// One attempt. After a failure that may not occur on another connection, the connection is dropped.
    pub(crate) async fn within<T>(
        &self,
        timeout: Duration,
        via: &Current,
        attempt: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Failure> {
        let began = tokio::time::Instant::now();
        let failure = match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(answer)) => return Ok(answer),
            // The connection enforces the same deadline, and may report its end first.
            Ok(Err(_)) if began.elapsed() >= timeout => Failure::NoAnswer(timeout),
            Ok(Err(status)) => Failure::from(status),
            Err(_) => Failure::NoAnswer(timeout),
        };
        match failure {
            Failure::Passing(_) | Failure::NoAnswer(_) => self.link().renew(via),
            Failure::Final(_) => {}
        }
        Err(failure)
    }

    /// Waits before the next attempt, or returns the error if there is none.
    pub(crate) async fn pause(&self, attempts: &mut Attempts, failure: Failure) -> Result<(), Error> {
        match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(reason) => attempts.answered(reason),
            Failure::NoAnswer(within) => attempts.unanswered(within),
        }
        match attempts.after_failure() {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(Error::Unavailable {
                address: self.settings().address.clone(),
                reason: attempts.reason().to_owned(),
                attempts: attempts.failed(),
                elapsed: attempts.elapsed(),
            }),
        }
    }

    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::new(&self.settings().retry, self.settings().request_timeout)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(crate) fn kv(&self, via: &Current) -> KvClient<Authorised> {
        KvClient::with_interceptor(via.channel.clone(), self.settings().bearer.clone())
            .max_decoding_message_size(self.settings().max_message_bytes)
    }

    pub(crate) fn cluster(&self, via: &Current) -> ClusterClient<Authorised> {
        ClusterClient::with_interceptor(via.channel.clone(), self.settings().bearer.clone())
            .max_decoding_message_size(self.settings().max_message_bytes)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }
}
