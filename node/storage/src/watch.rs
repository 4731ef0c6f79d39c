//! Looking after a half while nobody writes or reads: whether its directory is still there, and what RocksDB's own
//! threads have met. A flush or a compaction has nobody to answer to but RocksDB's log.
//!
//! Damage that a compaction meets ends no writes (`paranoid_checks` is off, see `options`): every write that follows can
//! still be kept, and what is damaged may be the only copy. Compactions rest instead, for they would meet it again at
//! once, and the half is made anew where there is another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocksdb::{InfoLogger, LogLevel};
use tracing::{debug, warn};

use crate::error::StorageError;
use crate::faults::HalfName;
use crate::half::Half;
use crate::mirror::{Cause, Mirror};
use crate::patience::tick;
use crate::store::{Family, Store};

/// How soon a lost disk is noticed where nothing is written.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks that a read may be seen in before others go to the other half.
const SLOW_LOOKS: u32 = 2;
/// For so long compactions rest where one has met damage: others may have work meanwhile.
const REST: Duration = Duration::from_secs(600);

/// What RocksDB's threads have met since it was last asked for.
#[derive(Debug, Default)]
pub(crate) struct Met {
    damage: Mutex<Option<String>>,
    failure: Mutex<Option<Failure>>,
    /// The disk was full.
    pub full: AtomicBool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    of_compaction: bool,
    text: String,
}

#[derive(PartialEq, Eq, Debug)]
enum Told {
    Damage(String),
    Failure(Failure),
    Full,
}

impl Met {
    /// RocksDB's log, which is also where its threads' errors are told. Called with its locks held.
    pub(crate) fn logger(self: &Arc<Met>) -> InfoLogger {
        let met = self.clone();
        InfoLogger::new_callback_logger(LogLevel::Warn, move |_, text| {
            debug!(text, "RocksDB");
            match told(text) {
                Some(Told::Damage(text)) => {
                    met.damage.lock().get_or_insert(text);
                }
                Some(Told::Failure(failure)) => {
                    met.failure.lock().get_or_insert(failure);
                }
                Some(Told::Full) => met.full.store(true, Ordering::Relaxed),
                None => {}
            }
        })
    }
}

/// `Background IO error STATUS, reason NUMBER`: said of each error of a flush (0) or a compaction (1). A full disk is no failure
/// here: room may come, and the write-ahead log meets it too. Nor are descriptors that are all in use: no disk's fault.
fn told(text: &str) -> Option<Told> {
    let (_, text) = text.split_once("Background IO error ")?;
    let text = text.trim();
    if text.starts_with("Corruption") {
        return Some(Told::Damage(text.to_owned()));
    }
    if text.starts_with("IO error: No space left") {
        return Some(Told::Full);
    }
    if !text.starts_with("IO error") || text.contains("Too many open files") {
        return None;
    }
    Some(Told::Failure(Failure { of_compaction: text.ends_with("reason 1"), text: text.to_owned() }))
}

/// Whether compactions rest.
#[derive(Default)]
pub(crate) struct Rest {
    since: Mutex<Option<Instant>>,
    /// Damage that the volume has not been told of.
    news: AtomicBool,
    /// A compaction that could not read or write: the last half is not given up over it.
    failed: Mutex<Option<String>>,
}

impl Half {
    /// An error if this half is to be given up.
    pub(crate) fn look(&self) -> Result<(), StorageError> {
        self.mark.lock().check_whole()?;
        if let Some(reason) = self.met.damage.lock().take() {
            warn!(half = %self.name, directory = %self.directory.display(), reason, "a compaction has met damage");
            self.note_damage();
            self.rest.news.store(true, Ordering::Relaxed);
        }
        let failure = self.met.failure.lock().take();
        if let Some(failure) = failure {
            if !failure.of_compaction {
                return Err(StorageError::io("flush", failure.text));
            }
            warn!(half = %self.name, directory = %self.directory.display(), reason = failure.text, "a compaction has failed");
            *self.rest.failed.lock() = Some(failure.text);
            self.rest_compactions(true);
        }
        let rests = *self.rest.since.lock();
        match rests {
            None if self.damaged.load(Ordering::Relaxed) => self.rest_compactions(true),
            Some(since) if since.elapsed() >= REST => self.rest_compactions(false),
            _ => {}
        }
        Ok(())
    }

    fn rest_compactions(&self, rest: bool) {
        let value = if rest { "true" } else { "false" };
        for family in Family::EVERY {
            let Ok(handle) = self.family(family) else { continue };
            if let Err(error) = self.db.set_options_cf(&handle, &[("disable_auto_compactions", value)]) {
                warn!(half = %self.name, %error, "compactions could not be stopped or begun");
            }
        }
        *self.rest.since.lock() = rest.then(Instant::now);
    }

    pub(crate) fn take_news(&self) -> bool {
        self.rest.news.swap(false, Ordering::Relaxed)
    }
}

/// The thread: looks after the halves, until the other end is dropped.
pub(crate) fn run(store: &Store, closing: &Receiver<()>) {
    let interval = match &store.mirror {
        Some(mirror) => tick(mirror.hang_max).min(LOOK_INTERVAL),
        None => LOOK_INTERVAL,
    };
    while closing.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        look(store);
        if let Some(mirror) = &store.mirror {
            look_at_reads(store, mirror, interval);
            store.reader.close_left();
        }
    }
}

/// Drops a half whose disk does not answer a read, while the other one's does: so many looks are as many short waits that
/// this process has lived through (`patience`). Who waits in that read waits on; so before that, others read elsewhere.
fn look_at_reads(store: &Store, mirror: &Mirror, interval: Duration) {
    let [first, second] = &mirror.halves()[..] else { return };
    let looks = [first.reads.looks(), second.reads.looks()];
    let (slow, other) = if looks[0] > looks[1] { (first, second) } else { (second, first) };
    let [most, least] = [looks[0].max(looks[1]), looks[0].min(looks[1])];
    let is_late = |looks: u32| interval * looks > mirror.hang_max;
    if is_late(most) && !is_late(least) {
        let reason = format!("no answer to a read within {} ms", mirror.hang_max.as_millis());
        let _ = store.drop_half(mirror, slow, (Cause::Hangs, &reason));
    } else if most >= SLOW_LOOKS && least < SLOW_LOOKS {
        store.read_elsewhere(mirror, slow, other);
    }
}

/// Never waits for a disk of a mirror, unless to record that a half was dropped: its halves look by threads of their own.
pub(crate) fn look(store: &Store) {
    let Some(mirror) = &store.mirror else {
        if store.check().is_ok()
            && let Err(error) = store.reader().look()
        {
            tracing::error!(%error, "volume failed");
            store.fail(error.to_string());
        }
        return;
    };
    for half in mirror.halves() {
        let failed = half.failed().map(|reason| (Cause::Failed, reason));
        let failed = failed.or_else(|| Some((Cause::Unread, half.rest.failed.lock().take()?)));
        if let Some((cause, reason)) = failed {
            // An error is kept, and answered to whoever writes.
            let _ = store.drop_half(mirror, &half, (cause, &reason));
        }
        if half.take_news() {
            mirror.want_rebuild();
        }
    }
}

impl Store {
    /// Sees at once whether a half is still there, for whoever says that it is not.
    pub(crate) fn look_for(&self, mirror: &Mirror, name: HalfName) {
        let Some(half) = mirror.halves().into_iter().find(|half| half.name == name) else { return };
        let gone = half.mark.try_lock().and_then(|mark| mark.check_in_place().err());
        if let Some(error) = gone {
            let _ = self.drop_half(mirror, &half, (Cause::Failed, &error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Told, told};

    #[test]
    fn what_flushes_and_compactions_meet_is_told_apart() {
        let text = "Background IO error Corruption: block checksum mismatch in db/000012.sst offset 7 size 9, reason 1";
        assert_eq!(told(text), Some(Told::Damage(text.replace("Background IO error ", ""))));
        let text = "Background IO error IO error: While pread: db/000012.sst: Input/output error, reason 1";
        let failure = Failure { of_compaction: true, text: text.replace("Background IO error ", "") };
        assert_eq!(told(text), Some(Told::Failure(failure)));
        let text = "Background IO error IO error: No space left on device: While appending to file, reason 0";
        assert_eq!(told(text), Some(Told::Full));
        for other in [
            "Background IO error IO error: While open a file for appending: db/000012.sst: Too many open files, reason 0",
            "Background IO error Shutdown in progress: , reason 1",
            "Compaction error: Corruption: block checksum mismatch",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
