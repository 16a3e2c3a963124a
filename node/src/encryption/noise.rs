//! A byte stream that is encrypted by the [Noise protocol](https://noiseprotocol.org/noise.html), revision 34, with the pattern
//! `NNpsk0`: both sides prove that they know the key, the initiator with its first message. Each connection has session keys
//! that cannot be recovered later (forward secrecy). Knows nothing of what the stream carries.
//!
//! ```text
//! handshake   initiator → ephemeral key, tag    48 bytes
//!             responder → ephemeral key, tag    48 bytes
//! then        length (16 bits, big endian), ciphertext with tag
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{Key, KeyId, Ring};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// The first part of the prologue, on which both sides must agree; the cookie follows.
const PROLOGUE: &[u8] = b"kvasir peer link 1\0";
/// The length of a handshake message: an X25519 key and a tag.
const HANDSHAKE: usize = 32 + TAG;
/// The bytes that the cipher adds to a message.
const TAG: usize = 16;
/// The longest message that Noise allows.
const MAX_MESSAGE: usize = 65_535;
/// The most bytes that one message carries.
const MAX_CHUNK: usize = MAX_MESSAGE - TAG;
const LENGTH: usize = 2;
/// Each direction changes its key after this many messages (§11.3 of Noise), which is at most 4 GiB. The nonce keeps counting;
/// 2^64 messages are never reached.
const REKEY_AFTER: u64 = 1 << 16;

/// Why an encrypted stream could not be made, or failed.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The first message was made with an unknown key.
    #[error("the peer has another cookie or none of this node's keys: give both the same encryption settings")]
    Key,
    /// The responder closed the connection instead of answering.
    #[error(
        "the peer closed the connection during the handshake: it may have another cookie, or lack this node's primary key"
    )]
    Unanswered,
    /// A message was altered, left out, replayed, or made by another sender.
    #[error("a message of the peer is not authentic")]
    Forged,
    /// The connection failed or ended.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The handshake of the side that dials, with the primary key.
pub async fn initiate<S>(mut stream: S, ring: &Ring) -> Result<NoiseStream<S>, NoiseError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = ring.primary();
    let mut state = handshake(ring, key, true);
    let mut message = [0; HANDSHAKE];
    let written = state.write_message(&[], &mut message).expect("the first message is the initiator's, and fits");
    debug_assert_eq!(written, HANDSHAKE);
    stream.write_all(&message).await?;
    stream.flush().await?;
    stream.read_exact(&mut message).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => NoiseError::Unanswered,
        _ => error.into(),
    })?;
    state.read_message(&message, &mut []).map_err(|_| NoiseError::Forged)?;
    Ok(NoiseStream::new(stream, state, key.id))
}

/// The handshake of the side that accepts, with the key that the initiator chose.
pub async fn respond<S>(mut stream: S, ring: &Ring) -> Result<NoiseStream<S>, NoiseError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = [0; HANDSHAKE];
    stream.read_exact(&mut message).await?;
    // Trying a wrong key costs a few hashes, because the key exchange comes after.
    let matching = |key: &Key| {
        let mut state = handshake(ring, key, false);
        state.read_message(&message, &mut []).ok().map(|_| (state, key.id))
    };
    let (mut state, key) = ring.keys.iter().find_map(matching).ok_or(NoiseError::Key)?;
    // Fails for an ephemeral key that no honest initiator makes.
    state.write_message(&[], &mut message).map_err(|_| NoiseError::Forged)?;
    stream.write_all(&message).await?;
    stream.flush().await?;
    Ok(NoiseStream::new(stream, state, key))
}

fn handshake(ring: &Ring, key: &Key, initiator: bool) -> HandshakeState {
    let prologue = [PROLOGUE, &ring.cookie].concat();
    let builder = Builder::new(PATTERN.parse().expect("the pattern is one that snow was built with"))
        .psk(0, &key.link)
        .and_then(|builder| builder.prologue(&prologue))
        .expect("each is set once");
    let built = if initiator { builder.build_initiator() } else { builder.build_responder() };
    built.expect("NNpsk0 needs nothing but a key of 32 bytes")
}

/// An encrypted stream. Holds at most one message each way.
pub struct NoiseStream<S> {
    inner: S,
    state: TransportState,
    key: KeyId,
    rekey_after: u64,
    /// The received part of the incoming message.
    incoming: Vec<u8>,
    /// The decrypted incoming message, and how much of it was read.
    plain: Vec<u8>,
    read: usize,
    /// The outgoing message, and how much of it was written.
    outgoing: Vec<u8>,
    written: usize,
}

impl<S> NoiseStream<S> {
    fn new(inner: S, state: HandshakeState, key: KeyId) -> Self {
        let state = state.into_transport_mode().expect("both messages of the handshake have passed");
        Self {
            inner,
            state,
            key,
            rekey_after: REKEY_AFTER,
            incoming: Vec::new(),
            plain: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            written: 0,
        }
    }

    /// The key that both sides proved to know.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Decrypts the incoming message. A message that is not authentic is kept, so that each further read fails as well.
    fn open(&mut self) -> io::Result<()> {
        self.read = 0;
        self.plain.resize(self.incoming.len().saturating_sub(LENGTH + TAG), 0);
        let opened = self.state.read_message(&self.incoming[LENGTH..], &mut self.plain);
        self.plain.truncate(*opened.as_ref().unwrap_or(&0));
        opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, NoiseError::Forged))?;
        self.incoming.clear();
        if self.state.receiving_nonce().is_multiple_of(self.rekey_after) {
            self.state.rekey_incoming();
        }
        Ok(())
    }

    /// Encrypts as much of `bytes` as one message carries.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(MAX_CHUNK)];
        self.outgoing.resize(LENGTH + chunk.len() + TAG, 0);
        // Fails only when the nonces are used up; then the link must be made again.
        let len = self.state.write_message(chunk, &mut self.outgoing[LENGTH..]).map_err(io::Error::other)?;
        let length = u16::try_from(len).expect("a message is at most 65,535 bytes long");
        self.outgoing[..LENGTH].copy_from_slice(&length.to_be_bytes());
        self.written = 0;
        if self.state.sending_nonce().is_multiple_of(self.rekey_after) {
            self.state.rekey_outgoing();
        }
        Ok(chunk.len())
    }
}

impl<S: AsyncRead + Unpin> NoiseStream<S> {
    /// Reads until `incoming` has `len` bytes. Returns `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<bool>> {
        while self.incoming.len() < len {
            let had = self.incoming.len();
            self.incoming.resize(len, 0);
            let mut space = ReadBuf::new(&mut self.incoming[had..]);
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut space);
            let got = space.filled().len();
            self.incoming.truncate(had + got);
            ready!(polled)?;
            if got == 0 {
                return Poll::Ready(Ok(false));
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    /// Writes the rest of the outgoing message.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.outgoing[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read == this.plain.len() {
            if !ready!(this.poll_fill(cx, LENGTH))? {
                // Whether the content is complete is for the reader to decide.
                let whole = this.incoming.is_empty();
                return Poll::Ready(if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            let length = usize::from(u16::from_be_bytes([this.incoming[0], this.incoming[1]]));
            if !ready!(this.poll_fill(cx, LENGTH + length))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.open()?;
        }
        let rest = &this.plain[this.read..];
        let take = rest.len().min(out.remaining());
        out.put_slice(&rest[..take]);
        this.read += take;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        let taken = this.seal(bytes)?;
        // The rest is written by the next write or flush.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::super::ring;
    use super::*;

    type Side = Result<NoiseStream<DuplexStream>, NoiseError>;

    async fn pair(initiator: &Ring, responder: &Ring) -> (Side, Side) {
        let (near, far) = duplex(4 * MAX_MESSAGE);
        tokio::join!(initiate(near, initiator), respond(far, responder))
    }

    async fn linked() -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let (near, far) = pair(&ring("c", &[1]), &ring("c", &[1])).await;
        (near.unwrap(), far.unwrap())
    }

    #[tokio::test]
    async fn noise_carries_any_number_of_bytes_both_ways() {
        let (mut near, mut far) = linked().await;
        for len in [1, 100, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK + 7] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let (mut got, mut back) = (vec![0; len], vec![0; len]);
            let there = async {
                near.write_all(&bytes).await.unwrap();
                near.flush().await.unwrap();
                near.read_exact(&mut back).await.unwrap();
            };
            let here = async {
                far.read_exact(&mut got).await.unwrap();
                far.write_all(&got).await.unwrap();
                far.flush().await.unwrap();
            };
            tokio::join!(there, here);
            assert!(got == bytes && back == bytes, "{len}");
        }
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "the end of the stream is read as such");
    }

    #[tokio::test]
    async fn noise_directions_change_keys_in_step() {
        let (mut near, mut far) = linked().await;
        (near.rekey_after, far.rekey_after) = (3, 3);
        for n in 0..20_u8 {
            near.write_all(&[n]).await.unwrap();
            near.flush().await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), n);
        }
        // A side that keeps its old key is refused.
        near.rekey_after = u64::MAX;
        for n in 0..3_u8 {
            near.write_all(&[n]).await.unwrap();
            near.flush().await.unwrap();
            let _ = far.read_u8().await;
        }
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn noise_responder_accepts_only_keys_that_it_knows() {
        let (near, far) = pair(&ring("c", &[2, 1]), &ring("c", &[1, 3, 2])).await;
        assert_eq!(near.unwrap().key(), ring("c", &[2]).primary().id);
        assert_eq!(far.unwrap().key(), ring("c", &[2]).primary().id);
        for (theirs, ours) in [(ring("c", &[2, 1]), ring("c", &[1])), (ring("d", &[1]), ring("c", &[1]))] {
            let (near, far) = pair(&theirs, &ours).await;
            assert!(matches!(far.err(), Some(NoiseError::Key)));
            assert!(matches!(near.err(), Some(NoiseError::Unanswered)));
        }
    }

    /// The first message of an initiator.
    async fn recorded(ring: &Ring) -> Vec<u8> {
        let (near, mut far) = duplex(1024);
        let mut message = vec![0; HANDSHAKE];
        tokio::select! {
            _ = initiate(near, ring) => panic!("there was no answer"),
            read = far.read_exact(&mut message) => read.map(|_| message).unwrap(),
        }
    }

    #[tokio::test]
    async fn noise_replayed_handshake_is_of_no_use() {
        let ours = ring("c", &[1]);
        let message = recorded(&ours).await;
        let (mut near, far) = duplex(1024);
        near.write_all(&message).await.unwrap();
        // The message is answered like the original, but its sender does not know the session keys.
        let mut far = respond(far, &ours).await.unwrap();
        near.write_all(&[0, 20]).await.unwrap();
        near.write_all(&[7; 20]).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn noise_reflected_handshake_is_refused() {
        let (near, mut far) = duplex(1024);
        let echo = async {
            let mut message = [0; HANDSHAKE];
            far.read_exact(&mut message).await.unwrap();
            far.write_all(&message).await.unwrap();
        };
        let ours = ring("c", &[1]);
        let (answer, ()) = tokio::join!(initiate(near, &ours), echo);
        assert!(matches!(answer.err(), Some(NoiseError::Forged)));
    }

    #[tokio::test]
    async fn noise_altered_or_replayed_messages_are_refused() {
        type Wrong = fn(&mut Vec<u8>);
        let cases: [(&str, Wrong); 5] = [
            ("one bit", |message| message[10] ^= 1),
            ("the length", |message| message[1] -= 1),
            ("cut to nothing", |message| *message = vec![0, 0]),
            ("less than a tag", |message| *message = vec![0, 3, 1, 2, 3]),
            ("sent twice", |message| message.extend_from_within(..)),
        ];
        for (what, wrong) in cases {
            let (mut near, mut far) = linked().await;
            near.seal(b"hello").unwrap();
            let mut message = std::mem::take(&mut near.outgoing);
            wrong(&mut message);
            near.inner.write_all(&message).await.unwrap();
            drop(near);
            let mut got = Vec::new();
            let error = far.read_to_end(&mut got).await.expect_err(what);
            let message = error.to_string();
            assert!(error.downcast::<NoiseError>().is_ok(), "{what}: {message}");
            assert!(got.is_empty() || (what == "sent twice" && got == b"hello"), "{what}");
            assert!(far.read(&mut [0; 9]).await.is_err(), "{what}: the stream goes on after a failure");
        }
        let (mut near, _far) = linked().await;
        near.seal(b"hello").unwrap();
        near.incoming = near.outgoing.clone();
        assert!(near.open().is_err(), "each direction has a key of its own");
    }

    #[tokio::test]
    async fn noise_stream_cut_within_a_message_fails() {
        let (mut near, mut far) = linked().await;
        near.seal(b"hello").unwrap();
        near.inner.write_all(&near.outgoing[..10]).await.unwrap();
        drop(near);
        assert_eq!(far.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn noise_bytes_at_random_open_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ours = ring("c", &[1, 2]);
            prop_assert!(runtime.block_on(respond(Both(&bytes), &ours)).is_err());
            prop_assert!(runtime.block_on(initiate(Both(&bytes), &ours)).is_err());
        }
    }

    /// Supplies bytes to read, and discards what is written.
    struct Both<'a>(&'a [u8]);

    impl AsyncRead for Both<'_> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, out)
        }
    }

    impl AsyncWrite for Both<'_> {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}
