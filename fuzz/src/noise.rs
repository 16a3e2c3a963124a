//! Encrypted links: two nodes with an attacker in the middle who changes, cuts, drops, repeats, reflects and inserts
//! data, during the handshake and after it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use kvasir_node::encryption::Ring;
use kvasir_node::encryption::noise::{NoiseError, NoiseStream, initiate, respond};
use kvasir_node::transport::PeerPortCounters;
use kvasir_node::transport::frame::FrameError;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::input::{Input, chunk};
use crate::sealed::keys;

/// The size of each handshake message, in bytes.
const HANDSHAKE: usize = 48;
/// The longest message after the handshake, with its length.
const MAX_MESSAGE: usize = 2 + 65_535;

// ---- the wire

/// One end of a connection: its input and its output.
#[derive(Default)]
struct End {
    coming: VecDeque<u8>,
    /// End of input.
    ended: bool,
    going: Vec<u8>,
    /// The most bytes that one read or write moves.
    step: usize,
    /// How much output fits before writes have to wait.
    room: usize,
}

#[derive(Clone)]
struct Wire(Rc<RefCell<End>>);

impl Wire {
    fn new(step: usize) -> Self {
        Self(Rc::new(RefCell::new(End { step, room: usize::MAX, ..End::default() })))
    }

    fn bring(&self, bytes: &[u8]) {
        self.0.borrow_mut().coming.extend(bytes);
    }

    fn end(&self) {
        self.0.borrow_mut().ended = true;
    }

    fn taken_out(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().going)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut end = self.0.borrow_mut();
        assert!(out.remaining() <= MAX_MESSAGE, "room for {} bytes at once", out.remaining());
        if end.coming.is_empty() {
            return if end.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let take = end.step.min(out.remaining()).min(end.coming.len());
        let bytes: Vec<u8> = end.coming.drain(..take).collect();
        out.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut end = self.0.borrow_mut();
        let take = end.step.min(end.room).min(bytes.len());
        if take == 0 {
            return Poll::Pending;
        }
        end.room -= take;
        end.going.extend_from_slice(&bytes[..take]);
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// ---- the handshake

type Shaken = Result<NoiseStream<Wire>, NoiseError>;

/// What the attacker makes of a handshake message. `other` is a message of another connection.
fn tampered(input: &mut Input<'_>, message: &[u8], mine: &[u8], other: &[u8]) -> Vec<u8> {
    let mut tampered = message.to_vec();
    match input.below(8) {
        0 => {
            for _ in 0..=input.below(3) {
                let at = input.below(tampered.len().max(1));
                if let Some(byte) = tampered.get_mut(at) {
                    *byte ^= input.byte();
                }
            }
        }
        1 => tampered.truncate(input.below(HANDSHAKE + 1)),
        2 => tampered.extend_from_slice(input.chunk()),
        3 => tampered = input.chunk().to_vec(),
        4 => tampered = mine.to_vec(),
        5 => tampered = other.to_vec(),
        _ => {}
    }
    tampered
}

/// Counts the reason for a failed link, as the link's task does.
fn count(counters: &PeerPortCounters, error: &FrameError) -> &'static str {
    let before = counters.read();
    counters.count(error);
    let counted: Vec<_> = counters.read().into_iter().zip(before).filter(|(now, before)| now != before).collect();
    assert_eq!(counted.len(), 1, "{error}");
    assert_eq!(counted[0].0.1, counted[0].1.1 + 1);
    counted[0].0.0
}

/// The two messages of an undisturbed handshake.
fn recorded(ring: &Ring) -> [Vec<u8>; 2] {
    let (near, far) = (Wire::new(usize::MAX), Wire::new(usize::MAX));
    let mut opening = Box::pin(initiate(near.clone(), ring));
    assert!((&mut opening).now_or_never().is_none(), "there is no answer yet");
    let first = near.taken_out();
    far.bring(&first);
    respond(far.clone(), ring).now_or_never().expect("it waits for no more").expect("the message is intact");
    [first, far.taken_out()]
}

struct Nodes {
    near: (Wire, Shaken),
    far: (Wire, Shaken),
    /// Whether each side received what the other sent.
    whole: bool,
}

fn handshake(input: &mut Input<'_>, counters: &PeerPortCounters) -> Nodes {
    let step = input.of(&[usize::MAX, 1, 7, 4096]);
    let theirs = input.of(&[("c", &[1, 2][..]), ("c", &[2, 1]), ("c", &[3, 1]), ("d", &[1])]);
    let (initiator, responder) = (keys(theirs.0, theirs.1).now(), keys("c", &[1, 2]).now());
    let fits = theirs.0 == "c" && theirs.1[0] < 3;
    let (near, far) = (Wire::new(step), Wire::new(step));
    let other: Arc<[Vec<u8>; 2]> = if input.flag() { recorded(&responder).into() } else { Arc::default() };

    let mut opening = Box::pin(initiate(near.clone(), &initiator));
    assert!((&mut opening).now_or_never().is_none(), "there is no answer yet");
    let first = near.taken_out();
    assert_eq!(first.len(), HANDSHAKE);
    let forwarded = tampered(input, &first, &other[1], &other[0]);
    far.bring(&forwarded);
    let mut answering = Box::pin(respond(far.clone(), &responder));
    let answered = (&mut answering).now_or_never().unwrap_or_else(|| {
        far.end();
        answering.now_or_never().expect("the connection has ended")
    });
    let good = |made: &[u8]| made.len() == HANDSHAKE && forwarded.starts_with(made);
    assert_eq!(answered.is_ok(), (fits && good(&first)) || good(&other[0]), "a key that this side did not offer");
    if let Err(error) = answered.as_ref() {
        let short = forwarded.len() < HANDSHAKE;
        assert!(matches!(error, NoiseError::Io(_)) == short && matches!(error, NoiseError::Key) != short, "{error}");
    }

    let answer = far.taken_out();
    assert_eq!(answer.len(), if answered.is_ok() { HANDSHAKE } else { 0 });
    let heard = tampered(input, &answer, &first, &other[1]);
    near.bring(&heard);
    let opened = (&mut opening).now_or_never().unwrap_or_else(|| {
        near.end();
        opening.now_or_never().expect("the connection has ended")
    });
    let whole = good(&first) && answered.is_ok() && heard.starts_with(&answer);
    assert_eq!(opened.is_ok(), whole, "an answer to another handshake");
    if let (Ok(opened), Ok(answered)) = (&opened, &answered) {
        assert_eq!((opened.key(), answered.key()), (initiator.primary().id, initiator.primary().id));
    }
    let fail = |shaken: Shaken| {
        shaken.map_err(|error| {
            let short = matches!(error, NoiseError::Io(_));
            let late = matches!(error, NoiseError::Unanswered | NoiseError::Key);
            let counted = count(counters, &error.into());
            assert_eq!(
                counted,
                if short {
                    "handshake"
                } else if late {
                    "key"
                } else {
                    "forged"
                }
            );
            NoiseError::Forged
        })
    };
    Nodes { near: (near, fail(opened)), far: (far, fail(answered)), whole }
}

// ---- after the handshake

/// One direction of a link.
#[derive(Default)]
struct Direction {
    /// Each message in its wire form, and its content.
    sent: Vec<(Vec<u8>, Vec<u8>)>,
    /// The bytes passed to the receiver.
    brought: Vec<u8>,
    /// The decrypted bytes.
    got: Vec<u8>,
    failed: bool,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let counters = PeerPortCounters::default();
    let Nodes { near, far, whole } = handshake(&mut input, &counters);
    let mut ends = [near, far];
    let mut ways = [Direction::default(), Direction::default()];
    // Surplus bytes of the handshake's messages precede the messages after it.
    for (way, (wire, shaken)) in ways.iter_mut().zip(&ends) {
        if shaken.is_ok() {
            way.brought = wire.0.borrow().coming.iter().copied().collect();
        }
    }
    while !input.is_empty() {
        let to = input.below(2);
        match input.below(10) {
            0..=2 => {
                let (wire, Ok(stream)) = &mut ends[1 - to] else { continue };
                // Up to three messages, unless written byte by byte.
                let long = if wire.0.borrow().step < 4096 { 1000 } else { 150_000 };
                let len = if input.byte() == 0 { long } else { usize::from(input.byte()) };
                let bytes = vec![input.byte(); len];
                send(wire, stream, &bytes, &mut ways[to]);
            }
            3 => {
                // The peer reads nothing: the writer accepts no more than one message.
                let (wire, Ok(stream)) = &mut ends[1 - to] else { continue };
                wire.0.borrow_mut().room = input.below(100);
                let bytes = [input.byte(); 100];
                if let Some(sent) = stream.write(&bytes).now_or_never() {
                    assert_eq!(sent.expect("it has not failed"), bytes.len());
                    assert!(stream.write(&bytes).now_or_never().is_none(), "a second message is held");
                }
                wire.0.borrow_mut().room = usize::MAX;
                stream.flush().now_or_never().expect("there is room").expect("it has not failed");
                note(wire, &bytes, &mut ways[to]);
            }
            what => {
                let message = message(&mut input, what, &ways, to);
                let (wire, shaken) = &mut ends[to];
                let Ok(stream) = shaken else { continue };
                ways[to].brought.extend_from_slice(&message);
                wire.bring(&message);
                if input.flag() {
                    read(stream, &mut ways[to], &counters, input.flag());
                }
            }
        }
    }
    for ((wire, shaken), way) in ends.iter_mut().zip(&mut ways) {
        let Ok(stream) = shaken else { continue };
        wire.end();
        read(stream, way, &counters, false);
        judge(way, whole);
        // After a failure, every call fails.
        if way.failed {
            let again = stream.read(&mut [0; 64]).now_or_never();
            assert!(matches!(again, Some(Err(_))), "after a failure: {again:?}");
        }
    }
}

/// What the attacker passes to one side.
fn message(input: &mut Input<'_>, what: usize, ways: &[Direction; 2], to: usize) -> Vec<u8> {
    let (way, back) = (&ways[to].sent, &ways[1 - to].sent);
    let next = || {
        let mut at = 0;
        way.iter().find(|(message, _)| {
            at += message.len();
            at > ways[to].brought.len()
        })
    };
    match what {
        // In order.
        4..=6 => next().map(|(message, _)| message.clone()).unwrap_or_default(),
        7 if !way.is_empty() => way[input.below(way.len())].0.clone(),
        8 if !back.is_empty() => back[input.below(back.len())].0.clone(),
        9 if !way.is_empty() => {
            let mut message = next().unwrap_or(&way[0]).0.clone();
            match input.below(3) {
                0 => {
                    let at = input.below(message.len());
                    message[at] ^= input.byte();
                }
                1 => message.truncate(input.byte().into()),
                _ => drop(message.splice(..input.below(message.len()).min(4), input.chunk().iter().copied())),
            }
            message
        }
        _ => input.chunk().to_vec(),
    }
}

fn send(wire: &Wire, stream: &mut NoiseStream<Wire>, bytes: &[u8], way: &mut Direction) {
    let mut buffered = bytes;
    while !buffered.is_empty() {
        let taken = stream.write(buffered).now_or_never().expect("there is room").expect("it has not failed");
        stream.flush().now_or_never().expect("there is room").expect("it has not failed");
        note(wire, &buffered[..taken], way);
        buffered = &buffered[taken..];
    }
}

/// Records a message that was sent.
fn note(wire: &Wire, bytes: &[u8], way: &mut Direction) {
    let message = wire.taken_out();
    assert_eq!(message.len(), 2 + bytes.len() + 16);
    assert!(message.len() <= MAX_MESSAGE);
    way.sent.push((message, bytes.to_vec()));
}

/// Reads everything available, or only a little.
fn read(stream: &mut NoiseStream<Wire>, way: &mut Direction, counters: &PeerPortCounters, little: bool) {
    let mut buffer = [0; 4096];
    let space = if little { &mut buffer[..3] } else { &mut buffer[..] };
    while let Some(read) = stream.read(space).now_or_never() {
        match read {
            Ok(0) => break,
            Ok(len) => {
                assert!(!way.failed, "it gives out {len} bytes after it has failed");
                way.got.extend_from_slice(&space[..len]);
            }
            Err(error) => {
                let cut = error.kind() == io::ErrorKind::UnexpectedEof;
                assert_eq!(count(counters, &error.into()), if cut { "handshake" } else { "forged" });
                way.failed = true;
                break;
            }
        }
        if little {
            break;
        }
    }
}

/// The output equals what was sent, up to the first byte that the attacker changed, and not a byte more.
fn judge(way: &Direction, whole: bool) {
    let (mut rest, mut plain) = (&way.brought[..], Vec::new());
    for (message, carried) in &way.sent {
        let Some(behind) = rest.strip_prefix(&message[..]).filter(|_| whole) else { break };
        plain.extend_from_slice(carried);
        rest = behind;
    }
    assert!(way.got == plain, "{} bytes came out, {} went in", way.got.len(), plain.len());
    assert_eq!(way.failed, !rest.is_empty(), "{} bytes were not those that were sent", rest.len());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // The step, the initiator's keys, whether there is another handshake, and what happens to its two messages.
    let good = [0, 0, 0, 7, 7];
    let talk: Vec<u8> = (0..8u8).flat_map(|n| [n & 1, 0, 1, n * 20, n, n & 1, 4, 1, 0]).collect();
    let with = |first: [u8; 5], rest: &[u8]| [&first[..], rest].concat();
    let send = [0, 0, 1, 9, 5, 0, 0, 1, 8, 6, 1, 0, 1, 7, 7];
    let shut = |first: u8, second: u8| with([0, 0, 1, first, second], &[]);
    vec![
        with(good, &talk),
        with([1, 1, 0, 7, 7], &talk),
        with([2, 2, 0, 7, 7], &talk),
        with([0, 3, 0, 7, 7], &talk),
        // One of each kind: long messages, no room, out of order, reflected, corrupt, and anything.
        with(good, &[&[0, 0, 0, 0, 9][..], &[0, 4, 1, 1], &[0, 4, 1, 0, 0, 4, 1, 0], &talk].concat()),
        with(good, &[&[0, 3, 50, 1][..], &[0, 4, 1, 0], &talk].concat()),
        with(good, &[&send[..], &[0, 7, 1, 1, 0]].concat()),
        with(good, &[&send[..], &[0, 4, 1, 0, 0, 7, 0, 1, 0]].concat()),
        with(good, &[&send[..], &[0, 8, 0, 1, 0]].concat()),
        with(good, &[&send[..], &[0, 9, 0, 9, 1, 1, 0]].concat()),
        with(good, &[&send[..], &[0, 4, 1, 0, 0, 9, 1, 20, 1, 0]].concat()),
        with(good, &[&[1, 7][..], &chunk(&[0, 3, 1, 2, 3]), &[1, 0]].concat()),
        // The handshake's messages: changed, cut, extended, anything, reflected, of another connection.
        with([0, 0, 0, 0, 0], &[5, 1, 7]),
        shut(1, 20),
        with([0, 0, 0, 2, 0], &[3, 1, 2, 3, 7]),
        with([0, 0, 0, 3, 0], &chunk(&[9; 48])),
        shut(4, 7),
        shut(5, 7),
        shut(7, 4),
        shut(7, 5),
    ]
}
