//! How a call that waits comes to look again. The state that it looks at is
//! under the engine's lock, and is changed by others.

use tokio::sync::watch;

/// Rises when something was heard that a waiting call may wait for.
#[derive(Default)]
pub(super) struct Heard(watch::Sender<u64>);

impl Heard {
    /// Has waiting calls look again. To be called after the change, once its
    /// lock is let go.
    pub(super) fn tell(&self) {
        // Whoever is not among them yet has its first look still before it, and
        // that one sees the change: see `until`.
        if self.0.receiver_count() > 0 {
            self.0.send_modify(|times| *times = times.wrapping_add(1));
        }
    }

    /// Looks, and again whenever something was heard, until enough was seen.
    pub(super) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        // Before the first look: of what changes after it, this must be told.
        let mut heard = self.0.subscribe();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            heard.changed().await.expect("what tells is here for as long as this waits");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shuttle::sync::Mutex;
    use shuttle::thread::{spawn, yield_now};

    use super::*;

    /// Shuttle runs the threads in many orders, switching at each lock and each
    /// yield; where all wait and nobody is left to wake them, it fails.
    #[test]
    fn nothing_that_is_waited_for_is_missed_in_any_order() {
        let model = || {
            let (heard, state) = (Arc::new(Heard::default()), Arc::new(Mutex::new(0)));
            let change = |heard: Arc<Heard>, state: Arc<Mutex<u32>>| {
                spawn(move || {
                    *state.lock().unwrap() += 1;
                    yield_now();
                    heard.tell();
                })
            };
            let wait = |heard: Arc<Heard>, state: Arc<Mutex<u32>>| {
                spawn(move || {
                    let look = || {
                        let enough = *state.lock().unwrap() == 2;
                        yield_now();
                        enough.then_some(())
                    };
                    shuttle::future::block_on(heard.until(look));
                })
            };
            let threads = [
                wait(heard.clone(), state.clone()),
                change(heard.clone(), state.clone()),
                wait(heard.clone(), state.clone()),
                change(heard, state),
            ];
            for thread in threads {
                thread.join().unwrap();
            }
        };
        shuttle::check_random(model, 2_000);
        shuttle::check_pct(model, 2_000, 3);
    }
}
