//! Leader election: of several operators, the one that holds a Lease reconciles.
//!
//! The holder renews the Lease while it works. If it cannot, it stops before the Lease expires. A newer release that waits
//! announces itself in the Lease, and the holder steps back at once; an older release waits until the holder is gone. Only the
//! local clock counts: a Lease has expired if this process saw no change of it for its duration. Knows nothing of the work.

use std::{future::Future, sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use parking_lot::RwLock;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use semver::Version;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{error::ApiError, watches::Watch};

/// How long the Lease is valid without a renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long the leader may work after the start of its last successful renewal. The rest of [`LEASE`] is for requests that are
/// under way.
const WORK_LIMIT: Duration = Duration::from_secs(10);
/// How often the leader renews the Lease, and the other candidates read it. A leader may miss two renewals.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Time limit for one read or renewal.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// How long work under way may take to end when the leader stops or steps back.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a write of the Lease is retried after another process wrote it between reading and writing.
const TRIES: u32 = 3;

/// Annotation of the Lease: the holder's release.
pub const HOLDER_VERSION: &str = "kvasir.dev/holder-version";
/// Annotation of the Lease: the candidate of a newer release that waits.
pub const SUCCESSOR: &str = "kvasir.dev/successor";
/// Annotation of the Lease: the release of that candidate.
pub const SUCCESSOR_VERSION: &str = "kvasir.dev/successor-version";

/// Permission to write until some moment; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Permit(Arc<RwLock<Option<Instant>>>);

impl Permit {
    /// Whether writes are permitted now.
    pub fn holds(&self) -> bool {
        self.end().is_some_and(|end| Instant::now() < end)
    }

    fn end(&self) -> Option<Instant> {
        *self.0.read()
    }

    /// Extends the permit to this moment.
    pub(crate) fn extend(&self, end: Instant) {
        *self.0.write() = Some(end);
    }

    fn revoke(&self) {
        *self.0.write() = None;
    }
}

/// A process that wants to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A name that no other process has, such as its pod's.
    pub identity: String,
    /// Its release.
    pub version: Version,
}

impl Candidate {
    /// Whether an annotation names a newer release than this one. A release that cannot be parsed is not newer.
    fn is_older_than(&self, version: &str) -> bool {
        Version::parse(version).is_ok_and(|version| version.cmp_precedence(&self.version).is_gt())
    }

    /// Whether an annotation names an older release than this one.
    fn is_newer_than(&self, version: &str) -> bool {
        Version::parse(version).is_ok_and(|version| version.cmp_precedence(&self.version).is_lt())
    }
}

/// Name of the Lease: the same for all operators that manage the same namespaces, whatever their Helm release.
pub fn lease_name(watch_namespace: Option<&str>) -> String {
    watch_namespace.map_or_else(|| "kvasir-operator".to_owned(), |namespace| format!("kvasir-operator-{namespace}"))
}

/// What a candidate does with a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// Write its own name into the Lease, or renew it.
    Take,
    /// Leave the Lease to its holder.
    Wait,
    /// Announce that a newer release waits.
    Announce,
    /// Release the Lease for a newer release that waits.
    StepBack,
}

/// What to do with a Lease whose holder and renewal have not changed for this long.
fn decide(me: &Candidate, lease: Option<&Lease>, unchanged: Duration) -> Move {
    let Some(lease) = lease else { return Move::Take };
    let note = |key| lease.annotations().get(key).map(String::as_str);
    let newer_waits = note(SUCCESSOR).is_some_and(|successor| successor != me.identity)
        && note(SUCCESSOR_VERSION).is_some_and(|version| me.is_older_than(version));
    let ran_out = unchanged >= duration(lease);
    match lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default() {
        holder if holder == me.identity => {
            if newer_waits {
                Move::StepBack
            } else {
                Move::Take
            }
        }
        // Released. If the newer candidate does not take the Lease in time, any candidate may.
        "" if newer_waits && !ran_out => Move::Wait,
        "" => Move::Take,
        _ if ran_out => Move::Take,
        _ => {
            let announced = note(SUCCESSOR_VERSION).is_some_and(|version| !me.is_newer_than(version));
            let newer = note(HOLDER_VERSION).is_some_and(|version| me.is_newer_than(version));
            if newer && !announced { Move::Announce } else { Move::Wait }
        }
    }
}

fn duration(lease: &Lease) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
    seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(LEASE, Duration::from_secs)
}

/// The result of one check of the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Leading,
    Waiting,
    SteppingBack,
}

/// Why the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process shuts down.
    Shutdown,
    /// A newer release takes over.
    SteppedBack,
    /// Another process holds the Lease, or it could not be renewed in time.
    Lost,
    /// The work ended by itself, which is a bug.
    Ended,
}

/// The holder of a Lease, and the time of its last renewal.
type Renewal = (Option<String>, Option<MicroTime>);

/// One candidate and its Lease.
pub struct Election {
    api: Api<Lease>,
    name: String,
    me: Candidate,
    permit: Permit,
    leads: Gauge,
    watch: Watch,
    /// Holder and renewal as last read, and the time since which they have not changed.
    seen: Option<(Renewal, Instant)>,
}

impl Election {
    /// A candidate for the Lease of this name. `watch` reports whether the Lease can be read.
    pub fn new(client: Client, namespace: &str, name: String, me: Candidate, watch: Watch) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name, me, permit: Permit::default(), leads: Gauge::default(), watch, seen: None }
    }

    /// Registers the metric.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Whether this operator leads: 1, or 0 while it stands by";
        registry.register("kvasir_operator_leader", help, self.leads.clone());
    }

    /// The permit, which holds while this candidate leads.
    pub fn permit(&self) -> Permit {
        self.permit.clone()
    }

    /// Does `work` whenever this candidate leads, until `shutdown` resolves or the work ends by itself.
    ///
    /// The argument of `work` becomes true when the work should end because the process shuts down or steps back. Work that
    /// does not end in time is dropped, and so is all work when the Lease is lost.
    pub async fn run<W: Future<Output = ()>>(
        mut self,
        mut work: impl FnMut(watch::Receiver<bool>) -> W,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = self.stand_by() => {}
                                // The check that is dropped here may have taken the Lease.
                () = &mut shutdown => return self.release().await,
            }
            tracing::info!(lease = self.name, identity = self.me.identity, "leading");
            self.leads.set(1);
            let (stop, stopped) = watch::channel(false);
            let mut under_way = Box::pin(work(stopped));
            let end = tokio::select! {
                () = &mut under_way => End::Ended,
                () = &mut shutdown => End::Shutdown,
                end = self.keep() => end,
            };
            if matches!(end, End::Shutdown | End::SteppedBack) {
                stop.send_replace(true);
                let left = self.permit.end().map_or(Duration::ZERO, |end| end.duration_since(Instant::now()));
                if timeout(FAREWELL.min(left), &mut under_way).await.is_err() {
                    tracing::warn!("work under way did not end in time and was aborted");
                }
            }
            drop(under_way);
            self.permit.revoke();
            self.leads.set(0);
            match end {
                End::Lost => tracing::warn!(lease = self.name, "no longer leading: the Lease was lost"),
                End::Shutdown | End::SteppedBack | End::Ended => self.release().await,
            }
            if matches!(end, End::Shutdown | End::Ended) {
                return;
            }
        }
    }

    /// Waits until this candidate leads.
    async fn stand_by(&mut self) {
        loop {
            let wait = match self.look().await {
                Ok(Standing::Leading) => return,
                Ok(Standing::Waiting) => LOOK_EVERY,
                Ok(Standing::SteppingBack) => {
                    self.release().await;
                    LOOK_EVERY
                }
                Err(error) => self.watch.lost(&error),
            };
            sleep(wait).await;
        }
    }

    /// Renews the Lease for as long as that succeeds.
    async fn keep(&mut self) -> End {
        loop {
            let Some(end) = self.permit.end() else { return End::Lost };
            let look = async {
                sleep(LOOK_EVERY).await;
                self.look().await
            };
            let looked = tokio::select! {
                () = sleep_until(end) => return End::Lost,
                looked = look => looked,
            };
            match looked {
                Ok(Standing::Leading) => {}
                Ok(Standing::Waiting) => return End::Lost,
                Ok(Standing::SteppingBack) => return End::SteppedBack,
                Err(error) => {
                    // The next renewal is tried within three seconds. Only the permit's end stops the work.
                    let _ = self.watch.lost(&error);
                }
            }
        }
    }

    /// Reads the Lease, decides, and acts on it.
    async fn look(&mut self) -> Result<Standing, String> {
        match timeout(REQUEST_LIMIT, self.make_move()).await {
            Ok(Ok(standing)) => {
                self.watch.heard();
                Ok(standing)
            }
            Ok(Err(error)) => Err(format!(
                "cannot read or write the Lease {}, check that the operator may: {}",
                self.name,
                ApiError::from(error)
            )),
            Err(_) => Err(format!("no answer about the Lease {} within {} s", self.name, REQUEST_LIMIT.as_secs())),
        }
    }

    async fn make_move(&mut self) -> Result<Standing, kube::Error> {
        for _ in 0..TRIES {
            let began = Instant::now();
            let lease = self.api.get_opt(&self.name).await?;
            let unchanged = self.unchanged(lease.as_ref());
            let next = decide(&self.me, lease.as_ref(), unchanged);
            let written = match next {
                Move::Wait => return Ok(Standing::Waiting),
                Move::StepBack => return Ok(Standing::SteppingBack),
                Move::Take => self.write(taken(&self.me, &self.name, lease)).await,
                Move::Announce => match lease {
                    Some(lease) => self.write(announced(&self.me, lease)).await,
                    None => return Ok(Standing::Waiting),
                },
            };
            match written {
                Ok(()) if next == Move::Take => {
                    self.permit.extend(began + WORK_LIMIT);
                    return Ok(Standing::Leading);
                }
                Ok(()) => {
                    tracing::info!(lease = self.name, "waiting to take over from an older release");
                    return Ok(Standing::Waiting);
                }
                // Another process wrote it in the meantime.
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(if self.permit.holds() { Standing::Leading } else { Standing::Waiting })
    }

    /// For how long this process saw the same holder and renewal.
    fn unchanged(&mut self, lease: Option<&Lease>) -> Duration {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        let now = spec.map(|spec| (spec.holder_identity.clone(), spec.renew_time.clone())).unwrap_or_default();
        match &self.seen {
            Some((before, since)) if *before == now => since.elapsed(),
            _ => {
                self.seen = Some((now, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Writes the Lease, unless it changed since it was read.
    async fn write(&self, lease: Lease) -> Result<(), kube::Error> {
        let params = PostParams::default();
        if lease.metadata.resource_version.is_some() {
            self.api.replace(&self.name, &params, &lease).await.map(drop)
        } else {
            self.api.create(&params, &lease).await.map(drop)
        }
    }

    /// Releases the Lease, so that another candidate can take it at once.
    async fn release(&self) {
        let release = async {
            let Some(lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let Some(lease) = released(&self.me, lease) else { return Ok(()) };
            self.write(lease).await?;
            tracing::info!(lease = self.name, "no longer leading: the Lease was released");
            Ok(())
        };
        match timeout(REQUEST_LIMIT, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error: ApiError = kube::Error::into(error);
                tracing::warn!(lease = self.name, %error, "the Lease could not be released and will expire");
            }
            Err(_) => tracing::warn!(lease = self.name, "the Lease could not be released in time and will expire"),
        }
    }
}

/// The Lease with this candidate as its holder.
fn taken(me: &Candidate, name: &str, lease: Option<Lease>) -> Lease {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let mut lease = lease.unwrap_or_else(|| Lease { metadata, ..Lease::default() });
    let now = MicroTime(Timestamp::now());
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_ref() != Some(&me.identity) {
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    spec.holder_identity = Some(me.identity.clone());
    spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
    spec.renew_time = Some(now);
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(HOLDER_VERSION.to_owned(), me.version.to_string());
    // The candidate that waited is this one, or it did not come.
    annotations.remove(SUCCESSOR);
    annotations.remove(SUCCESSOR_VERSION);
    lease
}

/// The Lease with the announcement of this candidate.
fn announced(me: &Candidate, mut lease: Lease) -> Lease {
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(SUCCESSOR.to_owned(), me.identity.clone());
    annotations.insert(SUCCESSOR_VERSION.to_owned(), me.version.to_string());
    lease
}

/// The Lease without a holder, if this candidate is the holder. An announcement stays.
fn released(me: &Candidate, mut lease: Lease) -> Option<Lease> {
    let LeaseSpec { holder_identity, renew_time, .. } = lease.spec.as_mut()?;
    if holder_identity.as_ref() != Some(&me.identity) {
        return None;
    }
    *holder_identity = None;
    *renew_time = Some(MicroTime(Timestamp::now()));
    lease.metadata.annotations.get_or_insert_default().remove(HOLDER_VERSION);
    Some(lease)
}

#[cfg(test)]
mod tests;
