//! Turns a connection into two halves that carry frames, protected as configured. Both sides first announce their
//! protection in the clear, so that two nodes that differ in it can report why they have no link.

use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::net::TcpStream;

use super::frame::{self, FrameError, Mode};
use crate::encryption::{KeyId, Keys, noise};
use crate::tls::PeerTls;

/// The half that frames are read from.
pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The half that frames are written to.
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// How links are protected.
#[derive(Clone)]
pub enum Protection {
    /// Unprotected.
    None,
    /// By Noise, with keys that the nodes share.
    Keys(Keys),
    /// By TLS, with certificates.
    Tls(PeerTls),
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Keys(_) => "Keys",
            Self::Tls(_) => "Tls",
        })
    }
}

/// Which side of a connection this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Dialled,
    Accepted,
}

/// A protected connection.
pub(super) struct Secured {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// The shared key that encrypts the connection, if there is one.
    pub(super) key: Option<KeyId>,
}

impl Secured {
    fn halves(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, key: Option<KeyId>) -> Self {
        let (reader, writer) = split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer), key }
    }
}

/// Exchanges preambles, then protects the connection.
pub(super) async fn secure(
    mut stream: TcpStream,
    side: Side,
    protection: &Protection,
    version: u8,
) -> Result<Secured, FrameError> {
    let mode = match protection {
        Protection::None => Mode::Plain,
        Protection::Keys(_) => Mode::Encrypted,
        Protection::Tls(_) => Mode::Tls,
    };
    frame::write_preamble(&mut stream, mode, version).await?;
    frame::read_preamble(&mut stream, mode, version).await?;
    Ok(match (protection, side) {
        (Protection::None, _) => {
            let (reader, writer) = stream.into_split();
            Secured { reader: Box::new(reader), writer: Box::new(writer), key: None }
        }
        (Protection::Keys(keys), side) => {
            let ring = keys.now();
            let stream = match side {
                Side::Dialled => noise::initiate(stream, &ring).await?,
                Side::Accepted => noise::respond(stream, &ring).await?,
            };
            let key = stream.key();
            Secured::halves(stream, Some(key))
        }
        (Protection::Tls(tls), Side::Dialled) => {
            Secured::halves(tls.connect(stream).await.map_err(FrameError::Tls)?, None)
        }
        (Protection::Tls(tls), Side::Accepted) => {
            Secured::halves(tls.accept(stream).await.map_err(FrameError::Tls)?, None)
        }
    })
}
