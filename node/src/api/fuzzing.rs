//! The decoders and methods of the client port without the port, for the fuzz targets.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use kvasir_proto::v1::{PipeRequest, PipeResponse, kv_server};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::{calls::Calls, deadline, kv::Kv, page_token, pipe};
use crate::auth::Caller;
use crate::config::Limits;
use crate::engine::Engine;

#[derive(Clone)]
pub struct ClientPort {
    engine: Arc<Engine>,
    limits: Limits,
}

impl ClientPort {
    pub fn new(engine: Arc<Engine>, limits: Limits) -> Self {
        Self { engine, limits }
    }

    pub async fn pipe(&self, request: PipeRequest) -> PipeResponse {
        let calls = Calls { engine: self.engine.clone(), limits: self.limits, caller: Caller::ANYONE };
        pipe::answer(&calls, request).await
    }

    pub fn kv(&self) -> impl kv_server::Kv {
        Kv { engine: self.engine.clone(), limits: self.limits, stop: CancellationToken::new() }
    }
}

/// A request that was identified as a caller with all rights.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller::ANYONE);
    request
}

pub fn read_page_token(token: &[u8], prefix: &str) -> Result<String, Status> {
    page_token::decode(token, prefix)
}

pub fn write_page_token(prefix: &str, last_key: &str) -> Vec<u8> {
    page_token::encode(prefix, last_key.as_bytes())
}

pub fn read_timeout(header: &str) -> Option<Duration> {
    deadline::parse(header)
}
