//! From a connection to two halves that carry frames, protected as the settings
//! say. Whatever the protection, both sides first say which one it is: two
//! nodes that differ in it can tell why they have no link.

use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::TcpStream;

use super::Side;
use super::frame::{self, FrameError, Mode};
use crate::encryption::{KeyId, Keys, noise};

/// Where frames come from.
pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Where frames go.
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A protected connection.
pub(super) struct Secured {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// What it is encrypted with, if that is a shared key.
    pub(super) key: Option<KeyId>,
}

/// Says how this node protects its links, hears the same of the peer, and does it.
pub(super) async fn secure(mut stream: TcpStream, side: Side, keys: Option<&Keys>) -> Result<Secured, FrameError> {
    let mode = if keys.is_some() { Mode::Encrypted } else { Mode::Plain };
    frame::write_preamble(&mut stream, mode).await?;
    frame::read_preamble(&mut stream, mode).await?;
    let Some(keys) = keys else {
        let (reader, writer) = stream.into_split();
        return Ok(Secured { reader: Box::new(reader), writer: Box::new(writer), key: None });
    };
    let ring = keys.now();
    let stream = match side {
        Side::Dialled => noise::initiate(stream, &ring).await?,
        Side::Accepted => noise::respond(stream, &ring).await?,
    };
    let key = Some(stream.key());
    let (reader, writer) = split(stream);
    Ok(Secured { reader: Box::new(reader), writer: Box::new(writer), key })
}
