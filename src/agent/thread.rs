//! The thread of the loop: sleeps until something is woken, or the alarm goes off.
//!
//! async-io's own thread waits for descriptors and wakes this one. What comes every second does not pass through it: its
//! timers and wakers are allocated anew each time, while sleeping for a given time costs nothing.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// When the thread wakes by itself.
#[derive(Default)]
pub struct Alarm(Cell<Option<Instant>>);

struct Sleeper(Thread);

// === impl Alarm ===

impl Alarm {
    /// Waits until then, inside of [`block_on`]. One caller at a time: the last one's instant counts.
    pub async fn at(&self, instant: Instant) {
        poll_fn(|_| {
            let is_over = Instant::now() >= instant;
            self.0.set((!is_over).then_some(instant));
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

// === impl Sleeper ===

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` to its end on this thread.
pub fn block_on<T>(alarm: &Alarm, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Sleeper(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut context) {
            return outcome;
        }
        match alarm.0.take() {
            Some(instant) => thread::park_timeout(instant.saturating_duration_since(Instant::now())),
            None => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smol::future::FutureExt;

    use super::*;

    #[test]
    fn sleeps_until_the_alarm_or_a_wake_whichever_comes_first() {
        let alarm = Alarm::default();
        let (sender, receiver) = smol::channel::bounded(1);
        let first = |pause| {
            let alarm = &alarm;
            let receiver = &receiver;
            async move {
                let at = Instant::now() + pause;
                let rung = async {
                    alarm.at(at).await;
                    assert!(Instant::now() >= at);
                    "alarm"
                };
                receiver.recv().or(async { Ok(rung.await) }).await.unwrap()
            }
        };

        assert_eq!(block_on(&alarm, first(Duration::from_millis(10))), "alarm");

        let waker = thread::spawn(move || sender.send_blocking("word from another thread").unwrap());
        assert_eq!(block_on(&alarm, first(Duration::from_secs(3600))), "word from another thread");
        waker.join().unwrap();
    }
}
