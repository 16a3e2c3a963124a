//! Exponential back-off.
//!
//! Knows nothing of what is retried.

use std::time::Duration;

/// Waits that double with each consecutive failure.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Retry {
    /// The wait after a failure that follows this many consecutive failures.
    pub fn wait(&self, failures: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(failures)).min(self.longest)
    }

    /// The same wait, shortened at random by up to a half, so that many waiters do not retry together.
    pub fn jittered(&self, failures: u32) -> Duration {
        self.wait(failures).mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_doubles_up_to_its_longest_wait() {
        let retry = Retry { first: Duration::from_secs(1), longest: Duration::from_secs(5) };
        assert_eq!([0, 1, 2, 3, u32::MAX].map(|failures| retry.wait(failures).as_secs()), [1, 2, 4, 5, 5]);
        for failures in 0..100 {
            let wait = retry.jittered(failures);
            assert!(wait <= retry.wait(failures) && wait >= retry.wait(failures) / 2, "{wait:?}");
        }
    }
}
