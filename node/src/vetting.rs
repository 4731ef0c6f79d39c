//! What a node knows of its own disks: until others were asked whether they know of newer ones, its replicas take no part
//! in elections. An old copy has forgotten votes, and entries that it has acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set while the node starts, and never unset.
#[derive(Debug)]
pub struct Vetting {
    asked: AtomicBool,
    heard: AtomicBool,
}

impl Vetting {
    /// `asked`: every other node has answered. `heard`: one has, or there is no other.
    pub fn new(asked: bool, heard: bool) -> Vetting {
        Vetting { asked: AtomicBool::new(asked), heard: AtomicBool::new(heard) }
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Those that answer have been asked.
    pub fn note_asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Another node answered, and knows of no newer disks.
    pub fn note_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether a replica may vote. `is_alone`: it is its group's only voter. Then no other replica's vote keeps an old copy
    /// from leading, and somebody must have said that it is none.
    pub fn allows(&self, is_alone: impl FnOnce() -> bool) -> bool {
        self.is_asked() && (self.is_heard() || !is_alone())
    }
}

#[cfg(test)]
mod tests {
    use super::Vetting;

    #[test]
    fn an_only_voter_waits_for_another_node_to_answer() {
        let vetting = Vetting::new(false, false);
        assert!(!vetting.allows(|| false) && !vetting.allows(|| true));
        vetting.note_asked();
        assert!(vetting.allows(|| false) && !vetting.allows(|| true));
        vetting.note_heard();
        assert!(vetting.allows(|| true));
        assert!(!Vetting::new(false, true).allows(|| false));
    }
}
