//! A bounded way for updates from the engine's thread to whoever asked, waiting or asynchronous.
//!
//! The sender never waits: it looks whether there is room, and whether anybody listens. Knows no
//! runtime: a receiver is woken by its own waker.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    /// Of a task that waits.
    waker: Option<Waker>,
    /// Threads that wait.
    waiting: usize,
    sends: bool,
    listens: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Rung for a thread that waits.
    bell: Condvar,
    capacity: usize,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let (waker, waiting) = (state.waker.take(), state.waiting);
        drop(state);
        // Ringing asks the system, also where nobody is.
        if waiting > 0 {
            self.bell.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The engine's end.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The other end.
#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// A channel in which `capacity` values may wait.
pub(crate) fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            queue: VecDeque::new(),
            waker: None,
            waiting: 0,
            sends: true,
            listens: true,
        }),
        bell: Condvar::new(),
        capacity,
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Sender<T> {
    /// Values that can be sent now.
    pub(crate) fn room(&self) -> usize {
        self.0.capacity.saturating_sub(self.0.lock().queue.len())
    }

    /// Whether nobody will ever take a value.
    pub(crate) fn is_closed(&self) -> bool {
        !self.0.lock().listens
    }

    /// Sends a value; false if there is no room, or nobody listens.
    pub(crate) fn send(&self, value: T) -> bool {
        let put = self.put(value);
        self.ring();
        put
    }

    /// The same, but the receiver hears of it at the next [`Sender::ring`].
    pub(crate) fn put(&self, value: T) -> bool {
        let mut state = self.0.lock();
        if !state.listens || state.queue.len() >= self.0.capacity {
            return false;
        }
        state.queue.push_back(value);
        true
    }

    /// Wakes the receiver if there is something for it.
    pub(crate) fn ring(&self) {
        let state = self.0.lock();
        if !state.queue.is_empty() {
            self.0.wake(state);
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.sends = false;
        self.0.wake(state);
    }
}

impl<T> Receiver<T> {
    /// [`Receiver::next`], for whoever is polled.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        match state.queue.pop_front() {
            Some(value) => Poll::Ready(Some(value)),
            None if !state.sends => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next value; `None` when the sender is gone and all is taken.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|context| self.poll(context)).await
    }

    /// The same, for threads that may wait.
    pub(crate) fn next_blocking(&mut self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            match state.queue.pop_front() {
                Some(value) => return Some(value),
                None if !state.sends => return None,
                None => {
                    state.waiting += 1;
                    let waited = self.0.bell.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.listens = false;
        state.waker = None;
        state.queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[test]
    fn bounded_and_in_order() {
        let (send, mut receive) = channel(2);
        assert_eq!(send.room(), 2);
        assert!(send.send(1) && send.send(2) && !send.send(3));
        assert_eq!(send.room(), 0);
        assert_eq!(receive.next_blocking(), Some(1));
        assert!(send.send(4));
        drop(send);
        assert_eq!(receive.next_blocking(), Some(2));
        assert_eq!(receive.next_blocking(), Some(4));
        assert_eq!(receive.next_blocking(), None);
    }

    #[test]
    fn who_walks_away_is_noticed() {
        let (send, receive) = channel(2);
        assert!(send.send(1) && !send.is_closed());
        drop(receive);
        assert!(send.is_closed() && !send.send(2));
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let (send, mut receive) = channel(1);
        let waits = std::thread::spawn(move || [receive.next_blocking(), receive.next_blocking()]);
        assert!(send.send(7));
        drop(send);
        assert_eq!(waits.join().unwrap(), [Some(7), None]);
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_waiting_task_is_woken() {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = count.clone().into();
        let mut context = Context::from_waker(&waker);
        let (send, mut receive) = channel(1);
        let mut next = pin!(receive.next());
        assert!(next.as_mut().poll(&mut context).is_pending());
        assert!(send.send(7));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(next.as_mut().poll(&mut context), Poll::Ready(Some(7)));
    }
}
