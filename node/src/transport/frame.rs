//! Frames on a peer connection: a preamble that identifies the protocol, then length-prefixed protobuf messages. Knows
//! nothing of what the messages mean.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::encryption::noise::NoiseError;

/// The length of a preamble, bytes.
pub const PREAMBLE_LEN: usize = 8;
/// The protocol version of this release. Only tests use another one.
pub const VERSION: u8 = 1;

/// How links are protected. Both sides announce their mode first, and the modes must be equal: nothing is negotiated, so
/// nothing can be downgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Unprotected.
    Plain,
    /// By Noise, with a key that the nodes share.
    Encrypted,
    /// By TLS, with certificates of one authority.
    Tls,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Plain, Self::Encrypted, Self::Tls];

    const fn sign(self) -> u8 {
        match self {
            Self::Plain => b'/',
            Self::Encrypted => b'+',
            Self::Tls => b'=',
        }
    }

    /// The first bytes of a connection in each direction, for this version of the protocol.
    pub const fn preamble(self, version: u8) -> [u8; PREAMBLE_LEN] {
        [b'k', b'v', b'a', b's', b'i', b'r', self.sign(), version]
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "does not encrypt",
            Self::Encrypted => "encrypts with a shared key",
            Self::Tls => "speaks TLS",
        })
    }
}

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side is not a Kvasir node.
    #[error("the connection does not begin like that of a kvasir node")]
    Garbage,
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of the protocol, this node version {ours}: run neighbouring releases")]
    Version {
        /// The peer's version.
        theirs: u8,
        /// This node's version.
        ours: u8,
    },
    /// The peer protects its links in another way.
    #[error("on its links the peer {theirs}, and this node {ours}: give all nodes the same settings")]
    Mode {
        /// The peer's mode.
        theirs: Mode,
        /// This node's mode.
        ours: Mode,
    },
    /// The nodes have no key in common, or the data is not authentic.
    #[error(transparent)]
    Noise(NoiseError),
    /// A certificate is not accepted, or the peer does not speak TLS.
    #[error("TLS with the peer failed: {0}")]
    Tls(std::io::Error),
    /// A frame is longer than any that a node sends.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    Oversized {
        /// The length that the frame claims.
        len: usize,
        /// The longest frame that is accepted.
        limit: usize,
    },
    /// A frame does not decode.
    #[error("a frame could not be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The connection failed or ended.
    #[error("the connection ended: {0}")]
    Io(std::io::Error),
}

impl From<std::io::Error> for FrameError {
    /// Distinguishes failures of the encryption from those of the connection. With TLS the side that dials learns only
    /// after the handshake that its certificate was not accepted.
    fn from(error: std::io::Error) -> Self {
        match error.downcast::<NoiseError>() {
            Ok(error) => error.into(),
            Err(error) if is_of_tls(&error) => Self::Tls(error),
            Err(error) => Self::Io(error),
        }
    }
}

impl From<NoiseError> for FrameError {
    fn from(error: NoiseError) -> Self {
        match error {
            NoiseError::Io(error) => Self::Io(error),
            error => Self::Noise(error),
        }
    }
}

/// Whether TLS failed, and not the connection below it.
pub fn is_of_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// Writes the preamble of this mode and version.
pub async fn write_preamble(stream: &mut (impl AsyncWrite + Unpin), mode: Mode, version: u8) -> Result<(), FrameError> {
    Ok(stream.write_all(&mode.preamble(version)).await?)
}

/// Reads the peer's preamble, and checks it against this node's mode and version.
pub async fn read_preamble(stream: &mut (impl AsyncRead + Unpin), ours: Mode, version: u8) -> Result<(), FrameError> {
    let mut got = [0; PREAMBLE_LEN];
    stream.read_exact(&mut got).await?;
    let Some(theirs) = Mode::ALL.into_iter().find(|mode| mode.preamble(version)[..7] == got[..7]) else {
        return Err(FrameError::Garbage);
    };
    if got[7] != version {
        return Err(FrameError::Version { theirs: got[7], ours: version });
    }
    if theirs == ours { Ok(()) } else { Err(FrameError::Mode { theirs, ours }) }
}

/// Appends one frame to the buffer.
pub fn append<M: Message>(buffer: &mut BytesMut, message: &M) {
    let at = buffer.len();
    buffer.put_u32(0);
    message.encode(buffer).expect("a BytesMut grows as needed");
    let len = u32::try_from(buffer.len() - at - 4).expect("messages are far smaller than 4 GiB");
    buffer[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Writes encoded frames.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frames: &[u8]) -> Result<(), FrameError> {
    stream.write_all(frames).await?;
    Ok(stream.flush().await?)
}

/// Reads one frame of at most `limit` bytes.
pub async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<M, FrameError> {
    let len = stream.read_u32().await? as usize;
    if len > limit {
        return Err(FrameError::Oversized { len, limit });
    }
    // The buffer grows with the data that arrives, so a claimed length alone takes no memory.
    let mut body = BytesMut::new();
    let mut rest = stream.take(len as u64);
    while body.len() < len {
        if rest.read_buf(&mut body).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    let mut body: Bytes = body.freeze();
    let message = M::decode(&mut body)?;
    debug_assert!(!body.has_remaining());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use kvasir_proto::peer::v1::Hello;
    use proptest::prelude::*;

    use super::*;

    async fn read_bytes(bytes: &[u8], limit: usize) -> Result<Hello, FrameError> {
        read(&mut &bytes[..], limit).await
    }

    #[tokio::test]
    async fn frame_round_trip() {
        let hello = Hello {
            cluster: "c".into(),
            name: "n".into(),
            origin: 3,
            sidecar: true,
            now_ms: 4,
            started_ms: 1,
            returning: false,
            cluster_uid: String::new(),
        };
        let mut wire = BytesMut::new();
        append(&mut wire, &hello);
        assert_eq!(read_bytes(&wire, 100).await.unwrap(), hello);
        assert!(matches!(read_bytes(&wire, 5).await, Err(FrameError::Oversized { limit: 5, .. })));
        assert!(matches!(read_bytes(&wire[..wire.len() - 1], 100).await, Err(FrameError::Io(_))));

        append(&mut wire, &Hello { origin: 4, ..hello });
        let mut wire = &wire[..];
        for origin in [3, 4] {
            assert_eq!(read::<Hello>(&mut wire, 100).await.unwrap().origin, origin);
        }
    }

    #[tokio::test]
    async fn preamble_of_another_protocol_is_refused() {
        let read = async |bytes: &[u8], ours| read_preamble(&mut &*bytes, ours, VERSION).await;
        let (plain, encrypted) = (Mode::Plain, Mode::Encrypted);
        assert!(matches!(read(b"GET / HTTP/1.1\r\n", plain).await, Err(FrameError::Garbage)));
        assert!(matches!(read(b"kvasir/\x09", plain).await, Err(FrameError::Version { theirs: 9, ours: VERSION })));
        let [plain_first, encrypted_first] = [plain, encrypted].map(|mode| mode.preamble(VERSION));
        assert!(read(&plain_first, plain).await.is_ok() && read(&encrypted_first, encrypted).await.is_ok());
        assert!(matches!(
            read_preamble(&mut &plain_first[..], plain, 2).await,
            Err(FrameError::Version { theirs: VERSION, ours: 2 })
        ));
        let error = read(&plain_first, encrypted).await.unwrap_err().to_string();
        assert!(error.contains("the peer does not encrypt, and this node encrypts with a shared key"), "{error}");
        let error = read(&encrypted_first, plain).await.unwrap_err().to_string();
        assert!(error.contains("the peer encrypts with a shared key, and this node does not encrypt"), "{error}");
    }

    proptest! {
        #[test]
        fn frame_of_any_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read::<kvasir_proto::peer::v1::Message>(&mut &bytes[..], 1 << 20));
        }
    }
}
