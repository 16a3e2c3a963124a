//! Wakes waiting calls. The state that a call waits for is under the engine's lock, and other tasks change it.

use tokio::sync::watch;

/// Counts changes that a call may wait for.
#[derive(Default)]
pub(super) struct Wakeups(watch::Sender<u64>);

impl Wakeups {
    /// Makes waiting calls check again. Must be called after the change, once the lock is released.
    pub(super) fn notify(&self) {
        // A call that has not subscribed yet checks for the first time after this, and sees the change: see `until`.
        if self.0.receiver_count() > 0 {
            self.0.send_modify(|times| *times = times.wrapping_add(1));
        }
    }

    /// Calls `check` at once and after each notification, until it returns something.
    pub(super) async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        // Subscribes before the first check, so that no change after that check is missed.
        let mut changes = self.0.subscribe();
        loop {
            if let Some(found) = check() {
                return found;
            }
            changes.changed().await.expect("`self` keeps the sender for as long as this waits");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shuttle::sync::Mutex;
    use shuttle::thread::{spawn, yield_now};

    use super::*;

    /// Shuttle runs the threads in many orders and switches at each lock and yield. It fails if all threads wait.
    #[test]
    fn wakeups_are_not_missed_in_any_order() {
        let model = || {
            let (wakeups, state) = (Arc::new(Wakeups::default()), Arc::new(Mutex::new(0)));
            let change = |wakeups: Arc<Wakeups>, state: Arc<Mutex<u32>>| {
                spawn(move || {
                    *state.lock().unwrap() += 1;
                    yield_now();
                    wakeups.notify();
                })
            };
            let wait = |wakeups: Arc<Wakeups>, state: Arc<Mutex<u32>>| {
                spawn(move || {
                    let check = || {
                        let enough = *state.lock().unwrap() == 2;
                        yield_now();
                        enough.then_some(())
                    };
                    shuttle::future::block_on(wakeups.until(check));
                })
            };
            let threads = [
                wait(wakeups.clone(), state.clone()),
                change(wakeups.clone(), state.clone()),
                wait(wakeups.clone(), state.clone()),
                change(wakeups, state),
            ];
            for thread in threads {
                thread.join().unwrap();
            }
        };
        shuttle::check_random(model, 2_000);
        shuttle::check_pct(model, 2_000, 3);
    }
}
