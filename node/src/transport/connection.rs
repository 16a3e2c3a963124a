//! One connection to a peer, from the first byte to the last: handshake, link, messages.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use kvasir_proto::peer::v1::{Hello, Message};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::info;

use super::Transport;
use super::frame::{self, FrameError};
use super::refusals::LinkError;
use super::secure::{Reader, Secured, Side, Writer, secure};
use crate::engine::LinkHandle;
use crate::replica::{LinkId, MESSAGE_MAX_BYTES, PeerId, Violation};
use crate::wall_clock::{millis, wall_ms};

/// The longest Hello, bytes.
pub const MAX_HELLO: usize = 4096;
/// A link is closed after this many heartbeat intervals without a message.
pub const SILENT_BEATS: u32 = 10;
/// Due messages are combined into one write of about this many bytes.
const WRITE_BYTES: usize = 64 << 10;
/// How far a frame may exceed the usual limit of a message, by one entry and the vectors.
const FRAME_SLACK: usize = 4 << 20;

impl Transport {
    /// Runs a connection until it ends. The end of a connection that was a link is no error. `name` is the peer's name,
    /// if it is known before the peer sends it; `on_handshake` is called when the handshake is complete.
    pub(super) async fn connection(
        &self,
        stream: TcpStream,
        side: Side,
        mut name: Option<String>,
        on_handshake: impl FnOnce(),
    ) -> Result<(), LinkError> {
        let address = stream.peer_addr().map_err(FrameError::from)?;
        let result = self.run_link(stream, address, side, &mut name, on_handshake).await;
        if let Err(error) = &result
            && let Some(reason) = error.reason()
        {
            let (refusals, why) = (&self.options.refusals, error.to_string());
            match side {
                Side::Dialled => refusals.note(address, name.as_deref(), reason, &why),
                Side::Accepted => refusals.note_caller(address.ip(), name.as_deref(), reason, &why),
            }
        }
        result
    }

    async fn run_link(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        side: Side,
        name: &mut Option<String>,
        on_handshake: impl FnOnce(),
    ) -> Result<(), LinkError> {
        stream.set_nodelay(true).map_err(FrameError::from)?;
        let limit = self.options.port.handshake_timeout;
        let handshake = async {
            let mut secured = secure(stream, side, &self.options.protection, self.options.version).await?;
            let (me, hello) = self.handshake(&mut secured, name).await?;
            Ok::<_, LinkError>((secured, me, hello))
        };
        let (secured, me, hello) = timeout(limit, handshake).await.map_err(|_| LinkError::Slow(limit))??;
        on_handshake();

        let peer = PeerId {
            origin: hello.origin,
            name: hello.name.clone(),
            voter: !hello.sidecar,
            started_ms: hello.started_ms,
            returning: hello.returning,
        };
        let link = self.engine.link_up(me, peer).ok_or(LinkError::Outdated)?;
        self.note_linked(&hello, address, side);
        let (id, key) = (link.id, secured.key);
        self.set_up(hello.origin, key);
        let (origin, key) = (format!("{:016x}", hello.origin), key.map(|key| key.to_string()));
        info!(peer = hello.name, origin, %address, key, "link up");

        let result = self.carry(link, secured).await;
        self.note_skew(&hello.name, result.as_ref().err());
        self.engine.link_down(id);
        self.set_down(hello.origin);
        let reason = result.as_ref().err().map(ToString::to_string);
        info!(peer = hello.name, origin, reason, "link down");
        match result {
            Err(LinkError::Frame(FrameError::Io(_)) | LinkError::Silent(_) | LinkError::Retired) => Ok(()),
            other => other,
        }
    }

    /// Carries messages in both directions until the link ends.
    async fn carry(&self, link: LinkHandle, secured: Secured) -> Result<(), LinkError> {
        let LinkHandle { id, waker, gone } = link;
        let Secured { reader, writer, key } = secured;
        tokio::select! {
            result = self.receive(id, BufReader::new(reader)) => result,
            result = self.send(id, &waker, writer) => result,
            // Ends at once: a write to a peer that does not read must not delay the next link.
            () = gone.cancelled() => Ok(()),
            () = self.retired(key) => Err(LinkError::Retired),
        }
    }

    /// A link to the peer is up: earlier refusals are over.
    fn note_linked(&self, hello: &Hello, address: SocketAddr, side: Side) {
        self.skewed.lock().remove(&hello.name);
        let listens_at = match side {
            Side::Dialled => Some(address),
            Side::Accepted => {
                let targets = self.targets.borrow();
                targets.iter().find(|target| target.origin == hello.origin).map(|target| target.address)
            }
        };
        self.options.refusals.joined(listens_at, &hello.name);
    }

    /// Both sides introduce themselves, and each checks the other. Returns this node's origin as it was sent, and the
    /// peer's Hello. `name` is set to the peer's name as soon as it is known, even if the peer is refused.
    async fn handshake(&self, stream: &mut Secured, name: &mut Option<String>) -> Result<(u64, Hello), LinkError> {
        let id = self.engine.id();
        let ours = Hello {
            cluster: self.options.cluster.clone(),
            name: id.name,
            origin: id.origin,
            sidecar: !id.voter,
            now_ms: wall_ms(),
            started_ms: id.started_ms,
            returning: id.returning,
            cluster_uid: self.options.cluster_uid.clone(),
        };
        let mut frame = BytesMut::new();
        frame::append(&mut frame, &ours);
        frame::write(&mut stream.writer, &frame).await?;
        let hello: Hello = frame::read(&mut stream.reader, MAX_HELLO).await?;
        *name = Some(hello.name.clone());
        if hello.cluster != ours.cluster {
            return Err(LinkError::OtherCluster { theirs: hello.cluster, ours: ours.cluster });
        }
        if hello.cluster_uid != ours.cluster_uid {
            let (theirs, ours) = (hello.cluster_uid, ours.cluster_uid);
            return Err(LinkError::OtherUid { cluster: hello.cluster, theirs, ours });
        }
        if hello.origin == ours.origin || hello.origin == 0 {
            return Err(LinkError::Myself);
        }
        let checked = check_clock(hello.now_ms, wall_ms(), self.options.max_clock_skew);
        self.note_skew(&hello.name, checked.as_ref().err());
        checked?;
        Ok((ours.origin, hello))
    }

    async fn receive(&self, link: LinkId, mut reader: BufReader<Reader>) -> Result<(), LinkError> {
        let silence = self.options.sync_interval * SILENT_BEATS;
        let limit = MESSAGE_MAX_BYTES + self.options.max_value_bytes + FRAME_SLACK;
        loop {
            let message: Message =
                timeout(silence, frame::read(&mut reader, limit)).await.map_err(|_| LinkError::Silent(silence))??;
            self.engine.receive(link, message)?;
        }
    }

    async fn send(&self, link: LinkId, waker: &Notify, mut writer: Writer) -> Result<(), LinkError> {
        let silence = self.options.sync_interval * SILENT_BEATS;
        let mut frames = BytesMut::new();
        loop {
            frames.clear();
            // Due messages are sent together: an acknowledgement with a write, all of a heartbeat in one packet.
            while frames.len() < WRITE_BYTES
                && let Some(message) = self.engine.poll_send(link)
            {
                frame::append(&mut frames, &message);
            }
            if frames.is_empty() {
                waker.notified().await;
                continue;
            }
            // A peer that does not read counts as gone. Meanwhile writes for it wait only in the bounded log.
            timeout(silence, frame::write(&mut writer, &frames)).await.map_err(|_| LinkError::Silent(silence))??;
        }
    }
}

/// Whether two clocks are close enough to each other. Checked in both directions, so that both nodes report the skew.
fn check_clock(theirs_ms: u64, ours_ms: u64, limit: Duration) -> Result<(), LinkError> {
    let limit_ms = millis(limit);
    match (theirs_ms.saturating_sub(ours_ms), ours_ms.saturating_sub(theirs_ms)) {
        (ahead_ms, _) if ahead_ms > limit_ms => Err(Violation::ClockAhead { ahead_ms, limit_ms }.into()),
        (_, behind_ms) if behind_ms > limit_ms => Err(LinkError::ClockBehind { behind_ms, limit_ms }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_skew_is_refused_by_both_sides() {
        let check = |theirs, ours| check_clock(theirs, ours, Duration::from_secs(10));
        assert!(check(20_000, 10_000).is_ok() && check(10_000, 20_000).is_ok());
        assert!(matches!(
            check(20_001, 10_000),
            Err(LinkError::Violation(Violation::ClockAhead { ahead_ms: 10_001, limit_ms: 10_000 }))
        ));
        assert!(matches!(check(10_000, 20_001), Err(LinkError::ClockBehind { behind_ms: 10_001, limit_ms: 10_000 })));
    }
}
