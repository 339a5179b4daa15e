//! Prepares the next items on a thread of its own while the caller works on the present one.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Items that wait for the caller at most; one more is being made.
const WAITING: usize = 2;

/// An iterator over prepared items, in their order. It ends after the last or after the first error.
pub struct Prefetch<T> {
    receiver: Option<Receiver<Result<T>>>,
    worker: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Makes the items `make(first), make(first + 1), ... make(count - 1)`.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(first: usize, count: usize, make: impl Fn(usize) -> Result<T> + Send + 'static) -> Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        let work = move || {
            for number in first..count {
                let item = make(number);
                let failed = item.is_err();
                // The caller has gone away if nobody receives: then nothing is left to do.
                if sender.send(item).is_err() || failed {
                    break;
                }
            }
        };
        let worker = std::thread::Builder::new()
            .name("prefetch".into())
            .spawn(work)
            .map_err(|error| Error::program(format!("no thread to read data ahead can be started: {error}")))?;
        Ok(Prefetch { receiver: Some(receiver), worker: Some(worker) })
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if let Ok(item) = self.receiver.as_ref()?.recv() {
            return Some(item);
        }
        self.receiver = None;
        match self.worker.take()?.join() {
            Ok(()) => None,
            // A panic must not look like the end of the data.
            Err(_) => Some(Err(Error::program("the thread that reads data ahead has panicked"))),
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        // Without a receiver the worker's next send fails, so that waiting for it takes one item at most.
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn items_come_in_order_from_the_first_asked_for() {
        let items: Vec<usize> = Prefetch::start(3, 50, |k| Ok(k * k)).unwrap().map(|item| item.unwrap()).collect();
        assert_eq!(items, (3..50).map(|k| k * k).collect::<Vec<_>>());
        assert_eq!(Prefetch::start(5, 5, Ok).unwrap().count(), 0);
    }

    #[test]
    fn an_error_comes_through_and_ends_the_items() {
        let mut items =
            Prefetch::start(0, 9, |k| if k < 2 { Ok(k) } else { Err(Error::utterance("u", "bad")) }).unwrap();
        assert_eq!(items.next().unwrap().unwrap(), 0);
        assert_eq!(items.next().unwrap().unwrap(), 1);
        assert!(items.next().unwrap().unwrap_err().to_string().contains("utterance u: bad"));
        assert!(items.next().is_none());
    }

    #[test]
    fn a_panic_is_an_error_and_not_the_end() {
        let mut items = Prefetch::start(0, 2, |k| if k == 0 { Ok(k) } else { panic!("on purpose") }).unwrap();
        assert!(items.next().unwrap().is_ok());
        assert!(items.next().unwrap().unwrap_err().to_string().contains("panicked"));
        assert!(items.next().is_none());
    }

    #[test]
    fn no_more_is_made_than_can_wait_and_dropping_stops_it() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let mut items = Prefetch::start(0, 1000, move |k| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(k)
        })
        .unwrap();
        items.next();
        drop(items);
        // One received, two waiting, one at the door, and one more if a place became free before the drop.
        assert!(made.load(Ordering::SeqCst) <= 5);
    }
}
