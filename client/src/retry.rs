//! How long and how often a call is tried. Knows nothing of the calls.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// Limits on retries.
///
/// A call is tried again after a failure that may pass: the node is not ready or is draining, the connection cannot be
/// made or breaks, or no answer comes in time. A refusal is final.
///
/// ```
/// use kvasir_client::RetryPolicy;
/// use std::time::Duration;
///
/// let patient = RetryPolicy { budget: Duration::from_secs(60), ..RetryPolicy::default() };
/// assert_eq!(patient.initial_backoff, RetryPolicy::default().initial_backoff);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The time from the start of a call after which no attempt is made or waited for. The first attempt may always take
    /// the whole request timeout. Default: 10 s.
    pub budget: Duration,
    /// The pause before the second attempt. It doubles with each further attempt. Default: 25 ms.
    pub initial_backoff: Duration,
    /// The longest pause. Default: 1 s.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(10),
            initial_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
        }
    }
}

impl RetryPolicy {
    /// A single attempt.
    pub fn none() -> Self {
        Self { budget: Duration::ZERO, ..Self::default() }
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    request_timeout: Duration,
    started: Instant,
    backoff: Duration,
    failed: u32,
    reason: String,
}

impl Attempts {
    pub(crate) fn new(policy: &RetryPolicy, request_timeout: Duration) -> Self {
        Self {
            policy: policy.clone(),
            request_timeout,
            started: Instant::now(),
            backoff: policy.initial_backoff,
            failed: 0,
            reason: String::new(),
        }
    }

    /// How long the attempt that starts now may take.
    pub(crate) fn timeout(&self) -> Duration {
        if self.failed == 0 { self.request_timeout } else { self.request_timeout.min(self.left()) }
    }

    /// How many attempts failed.
    pub(crate) fn failed(&self) -> u32 {
        self.failed
    }

    /// The time since the first attempt began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The failure of the last attempt that says something about the node.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// Counts an attempt that failed with an answer, or because its connection broke.
    pub(crate) fn answered(&mut self, reason: String) {
        self.failed = self.failed.saturating_add(1);
        self.reason = reason;
    }

    /// Counts an attempt without an answer in time. An attempt that the budget cut short says nothing about the node, so
    /// the earlier reason stays.
    pub(crate) fn unanswered(&mut self, within: Duration) {
        self.failed = self.failed.saturating_add(1);
        if within >= self.request_timeout || self.reason.is_empty() {
            self.reason = format!("no answer within {} ms", within.as_millis());
        }
    }

    /// After a failed attempt: how long to wait before the next one; `None` if the budget allows no other.
    pub(crate) fn after_failure(&mut self) -> Option<Duration> {
        let pause = jittered(self.backoff.min(self.policy.max_backoff));
        self.backoff = self.backoff.saturating_mul(2).min(self.policy.max_backoff);
        (pause < self.left()).then_some(pause)
    }

    fn left(&self) -> Duration {
        self.policy.budget.saturating_sub(self.started.elapsed())
    }
}

/// Between half of the pause and all of it, so that clients that lost the same node do not return at the same moment.
fn jittered(pause: Duration) -> Duration {
    // The keys of a new hasher are random enough for this, and need no other crate.
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    pause.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::{Attempts, RetryPolicy};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(attempts: &mut Attempts) -> Option<Duration> {
        attempts.answered("draining".to_owned());
        attempts.after_failure()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_the_budget_ends() {
        let policy = RetryPolicy::default();
        let mut attempts = Attempts::new(&policy, 5 * SECOND);
        let mut expected = policy.initial_backoff;
        let mut pauses = 0;
        while let Some(pause) = fail(&mut attempts) {
            assert!(pause <= expected && pause >= expected / 2, "{pause:?} is not within {expected:?}");
            expected = (expected * 2).min(policy.max_backoff);
            pauses += 1;
            tokio::time::advance(pause).await;
        }
        assert!(attempts.elapsed() <= policy.budget);
        assert!(attempts.elapsed() + policy.max_backoff >= policy.budget, "gave up early: {:?}", attempts.elapsed());
        assert!((14..=25).contains(&pauses), "{pauses} pauses");
        assert_eq!(attempts.failed(), pauses + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_attempt_may_outlast_the_budget() {
        let policy = RetryPolicy { budget: 2 * SECOND, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(&policy, 5 * SECOND);
        assert_eq!(attempts.timeout(), 5 * SECOND);
        tokio::time::advance(SECOND).await;
        assert!(fail(&mut attempts).is_some());
        assert_eq!(attempts.timeout(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_cut_short_keeps_the_earlier_reason() {
        let policy = RetryPolicy { budget: 7 * SECOND, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(&policy, 5 * SECOND);
        attempts.unanswered(attempts.timeout());
        assert_eq!(attempts.reason(), "no answer within 5000 ms");
        attempts.answered("draining".to_owned());
        tokio::time::advance(5 * SECOND).await;
        attempts.unanswered(attempts.timeout());
        assert_eq!((attempts.reason(), attempts.failed()), ("draining", 3));
    }

    #[tokio::test(start_paused = true)]
    async fn policy_none_means_one_attempt() {
        assert_eq!(fail(&mut Attempts::new(&RetryPolicy::none(), SECOND)), None);
    }
}
