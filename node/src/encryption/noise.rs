//! A byte stream that is encrypted by the [Noise protocol](https://noiseprotocol.org/noise.html),
//! revision 34, in the pattern `NNpsk0`: both sides prove that they know the
//! key, the one that opens the connection with its first message, and each
//! connection has keys of its own, which nobody can work out later (forward
//! secrecy). Knows nothing of what the stream carries.
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
/// What both sides must agree on before a byte was sent, with the cookie behind it.
const PROLOGUE: &[u8] = b"kvasir peer link 1\0";
/// Each message of the handshake: an X25519 key and a tag.
const HANDSHAKE: usize = 32 + TAG;
/// What the cipher adds to a message.
const TAG: usize = 16;
/// The longest message that Noise allows.
const MAX_MESSAGE: usize = 65_535;
/// What one message carries.
const MAX_CHUNK: usize = MAX_MESSAGE - TAG;
const LENGTH: usize = 2;
/// Each direction takes a new key after this many messages (§11.3 of Noise):
/// at most 4 GiB. The nonce counts on, and 2^64 messages are never reached.
const REKEY_AFTER: u64 = 1 << 16;

/// Why there is no encrypted stream, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The first message was made with none of the known keys.
    #[error("the peer has another cookie or none of this node's keys: give both the same encryption settings")]
    Key,
    /// The responder went away instead of answering.
    #[error("the peer ended the handshake: it may have another cookie, or lack this node's primary key")]
    Unanswered,
    /// A message was changed, left out, sent twice, or made by somebody else.
    #[error("a message of the peer is not authentic")]
    Forged,
    /// The connection failed or ended.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens the connection, by the primary key.
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

/// Answers the one who opened the connection, by whichever key it did so.
pub async fn respond<S>(mut stream: S, ring: &Ring) -> Result<NoiseStream<S>, NoiseError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = [0; HANDSHAKE];
    stream.read_exact(&mut message).await?;
    // A key that does not fit costs a few hashes: the key exchange comes after.
    let fitting = |key: &Key| {
        let mut state = handshake(ring, key, false);
        state.read_message(&message, &mut []).ok().map(|_| (state, key.id))
    };
    let (mut state, key) = ring.keys.iter().find_map(fitting).ok_or(NoiseError::Key)?;
    // Fails when the initiator's ephemeral key is one that no honest side makes.
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
    /// The message that comes in: what is there of it.
    coming: Vec<u8>,
    /// What it opened to, and how much of that was taken.
    plain: Vec<u8>,
    taken: usize,
    /// The message that goes out, and how much of it has gone.
    going: Vec<u8>,
    gone: usize,
}

impl<S> NoiseStream<S> {
    fn new(inner: S, state: HandshakeState, key: KeyId) -> Self {
        let state = state.into_transport_mode().expect("both messages of the handshake have passed");
        Self {
            inner,
            state,
            key,
            rekey_after: REKEY_AFTER,
            coming: Vec::new(),
            plain: Vec::new(),
            taken: 0,
            going: Vec::new(),
            gone: 0,
        }
    }

    /// The key that both sides showed they have.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Opens the message that has come in. One that is not authentic stays where it is: whoever
    /// reads on gets the same error again, and nothing of it.
    fn open(&mut self) -> io::Result<()> {
        self.taken = 0;
        self.plain.resize(self.coming.len().saturating_sub(LENGTH + TAG), 0);
        let opened = self.state.read_message(&self.coming[LENGTH..], &mut self.plain);
        self.plain.truncate(*opened.as_ref().unwrap_or(&0));
        opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, NoiseError::Forged))?;
        self.coming.clear();
        if self.state.receiving_nonce().is_multiple_of(self.rekey_after) {
            self.state.rekey_incoming();
        }
        Ok(())
    }

    /// Seals as much of `bytes` as one message carries.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(MAX_CHUNK)];
        self.going.resize(LENGTH + chunk.len() + TAG, 0);
        // Fails only when the nonces have run out: then the link is to be made anew.
        let len = self.state.write_message(chunk, &mut self.going[LENGTH..]).map_err(io::Error::other)?;
        let length = u16::try_from(len).expect("a message is at most 65,535 bytes long");
        self.going[..LENGTH].copy_from_slice(&length.to_be_bytes());
        self.gone = 0;
        if self.state.sending_nonce().is_multiple_of(self.rekey_after) {
            self.state.rekey_outgoing();
        }
        Ok(chunk.len())
    }
}

impl<S: AsyncRead + Unpin> NoiseStream<S> {
    /// Reads until `coming` has `len` bytes; false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<bool>> {
        while self.coming.len() < len {
            let had = self.coming.len();
            self.coming.resize(len, 0);
            let mut space = ReadBuf::new(&mut self.coming[had..]);
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut space);
            let got = space.filled().len();
            self.coming.truncate(had + got);
            ready!(polled)?;
            if got == 0 {
                return Poll::Ready(Ok(false));
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    /// Writes out the message that is on its way.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.going.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.going[self.gone..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gone += written;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.plain.len() {
            if !ready!(this.poll_fill(cx, LENGTH))? {
                // An end in the middle of what is carried is for the reader to see.
                let whole = this.coming.is_empty();
                return Poll::Ready(if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            let length = usize::from(u16::from_be_bytes([this.coming[0], this.coming[1]]));
            if !ready!(this.poll_fill(cx, LENGTH + length))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.open()?;
        }
        let rest = &this.plain[this.taken..];
        let take = rest.len().min(out.remaining());
        out.put_slice(&rest[..take]);
        this.taken += take;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        let taken = this.seal(bytes)?;
        // What does not go at once goes with the next write, or the flush.
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
    async fn bytes_of_any_number_come_out_as_they_went_in_both_ways() {
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
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "an end is an end");
    }

    #[tokio::test]
    async fn each_direction_takes_new_keys_in_step() {
        let (mut near, mut far) = linked().await;
        (near.rekey_after, far.rekey_after) = (3, 3);
        for n in 0..20_u8 {
            near.write_all(&[n]).await.unwrap();
            near.flush().await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), n);
        }
        // One that goes on with the old key is not understood.
        near.rekey_after = u64::MAX;
        for n in 0..3_u8 {
            near.write_all(&[n]).await.unwrap();
            near.flush().await.unwrap();
            let _ = far.read_u8().await;
        }
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn the_responder_takes_any_key_it_knows_and_no_other() {
        let (near, far) = pair(&ring("c", &[2, 1]), &ring("c", &[1, 3, 2])).await;
        assert_eq!(near.unwrap().key(), ring("c", &[2]).primary().id);
        assert_eq!(far.unwrap().key(), ring("c", &[2]).primary().id);
        for (theirs, ours) in [(ring("c", &[2, 1]), ring("c", &[1])), (ring("d", &[1]), ring("c", &[1]))] {
            let (near, far) = pair(&theirs, &ours).await;
            assert!(matches!(far.err(), Some(NoiseError::Key)));
            assert!(matches!(near.err(), Some(NoiseError::Unanswered)));
        }
    }

    /// What one side sent, byte for byte, from a stream that nobody answers.
    async fn recorded(ring: &Ring) -> Vec<u8> {
        let (near, mut far) = duplex(1024);
        let mut message = vec![0; HANDSHAKE];
        tokio::select! {
            _ = initiate(near, ring) => panic!("nobody answered"),
            read = far.read_exact(&mut message) => read.map(|_| message).unwrap(),
        }
    }

    #[tokio::test]
    async fn a_handshake_that_was_recorded_opens_nothing() {
        let ours = ring("c", &[1]);
        let message = recorded(&ours).await;
        let (mut near, far) = duplex(1024);
        near.write_all(&message).await.unwrap();
        // It is answered, as the first time; but whoever sent it cannot go on.
        let mut far = respond(far, &ours).await.unwrap();
        near.write_all(&[0, 20]).await.unwrap();
        near.write_all(&[7; 20]).await.unwrap();
        assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_handshake_that_is_sent_back_is_no_answer() {
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
    async fn a_message_that_was_changed_cut_repeated_or_sent_back_is_refused() {
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
            let mut message = std::mem::take(&mut near.going);
            wrong(&mut message);
            near.inner.write_all(&message).await.unwrap();
            drop(near);
            let mut got = Vec::new();
            let error = far.read_to_end(&mut got).await.expect_err(what);
            let told = error.to_string();
            assert!(error.downcast::<NoiseError>().is_ok(), "{what}: {told}");
            assert!(got.is_empty() || (what == "sent twice" && got == b"hello"), "{what}");
            assert!(far.read(&mut [0; 9]).await.is_err(), "{what}: it goes on after a failure");
        }
        let (mut near, _far) = linked().await;
        near.seal(b"hello").unwrap();
        near.coming = near.going.clone();
        assert!(near.open().is_err(), "each direction has a key of its own");
    }

    #[tokio::test]
    async fn a_stream_cut_in_the_middle_of_a_message_has_failed() {
        let (mut near, mut far) = linked().await;
        near.seal(b"hello").unwrap();
        near.inner.write_all(&near.going[..10]).await.unwrap();
        drop(near);
        assert_eq!(far.read(&mut [0; 9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn no_bytes_open_anything(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ours = ring("c", &[1, 2]);
            prop_assert!(runtime.block_on(respond(Both(&bytes), &ours)).is_err());
            prop_assert!(runtime.block_on(initiate(Both(&bytes), &ours)).is_err());
        }
    }

    /// Bytes to read; what is written is forgotten.
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
