//! Which half reads come from, and the halves that are open. One that is in use no more is closed once nobody is busy with
//! it: its files are removed, and take room until then.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tracing::warn;

use crate::half::Half;

/// A half that is open for as long as this lives. Costs a read no lock and no count that others write to.
pub(crate) type Reading = Guard<Arc<Half>>;

pub(crate) struct Reader {
    now: ArcSwap<Half>,
    /// Every half that was in use, until it is closed: the two, one that was dropped and is not made anew yet, and those that
    /// somebody is busy with. Held for no disk.
    open: Mutex<Vec<Arc<Half>>>,
}

impl Reader {
    pub(crate) fn new(first: Arc<Half>) -> Reader {
        first.was_read.store(true, Ordering::Relaxed);
        Reader { now: ArcSwap::new(first.clone()), open: Mutex::new(vec![first]) }
    }

    pub(crate) fn now(&self) -> Reading {
        self.now.load()
    }

    /// Reads come from this half from now on.
    pub(crate) fn move_to(&self, half: Arc<Half>) {
        half.was_read.store(true, Ordering::Relaxed);
        self.keep(&half);
        self.now.store(half);
    }

    /// Whoever lets go of a half that is kept here never closes it, which may take as long as its disk likes.
    pub(crate) fn keep(&self, half: &Arc<Half>) {
        let mut open = self.open.lock();
        if !open.iter().any(|one| Arc::ptr_eq(one, half)) {
            open.push(half.clone());
        }
    }

    /// How long a read has been owed by a half that was dropped after others were read there; and by the one that is read,
    /// if it is alone.
    pub(crate) fn unanswered_for(&self, is_alone: bool) -> Duration {
        let now = self.now();
        let open = self.open.lock();
        let owing = open.iter().filter(|half| {
            let counts = (is_alone && Arc::ptr_eq(half, &now)) || half.failed().is_some();
            counts && half.was_read.load(Ordering::Relaxed)
        });
        owing.map(|half| half.reads.oldest()).max().unwrap_or_default()
    }

    /// Closes the halves that nobody has any more, each by a thread of its own, for its disk may hang.
    pub(crate) fn close_left(&self) {
        for half in self.take_left() {
            let (sender, receiver) = mpsc::sync_channel::<Arc<Half>>(1);
            let spawned = thread::Builder::new().name("half-close".to_owned()).spawn(move || drop(receiver.recv()));
            match spawned {
                Ok(_) => drop(sender.send(half)),
                Err(error) => {
                    warn!(half = %half.name, %error, "a half that is in use no more could not be closed");
                    self.open.lock().push(half);
                }
            }
        }
    }

    fn take_left(&self) -> Vec<Arc<Half>> {
        // Nobody comes by another one meanwhile but from those that are counted. Reads that are not are of the one that is
        // read now: they count before another one is.
        let mut open = self.open.lock();
        let (left, others) = open.drain(..).partition(|half| Arc::strong_count(half) == 1);
        *open = others;
        left
    }
}
