//! Bodies that are read whole before their length is announced.

use std::collections::VecDeque;

use parking_lot::Mutex;
use storage::BodyId;

/// Bodies that are remembered as damaged; the oldest are forgotten.
const DOUBTED_MAX: usize = 1_024;

/// Bodies whose damage was met after their length had been announced, so that the client's connection ended. The next
/// time they are read whole before it is announced.
#[derive(Default)]
pub struct Doubted(Mutex<VecDeque<(u32, BodyId)>>);

impl Doubted {
    pub(super) fn add(&self, shard: u32, body: BodyId) {
        let mut doubted = self.0.lock();
        if doubted.contains(&(shard, body)) {
            return;
        }
        doubted.push_back((shard, body));
        if doubted.len() > DOUBTED_MAX {
            doubted.pop_front();
        }
    }

    pub(super) fn contains(&self, shard: u32, body: BodyId) -> bool {
        self.0.lock().contains(&(shard, body))
    }

    pub(super) fn remove(&self, shard: u32, body: BodyId) {
        self.0.lock().retain(|doubted| *doubted != (shard, body));
    }
}

#[cfg(test)]
mod tests {
    use storage::BodyId;

    use super::{DOUBTED_MAX, Doubted};

    #[test]
    fn the_oldest_doubts_are_forgotten_and_those_that_were_unfounded() {
        let doubted = Doubted::default();
        for id in 0..=DOUBTED_MAX as u64 {
            doubted.add(7, BodyId(id));
            doubted.add(7, BodyId(id));
        }
        assert!(!doubted.contains(7, BodyId(0)) && doubted.contains(7, BodyId(1)) && !doubted.contains(8, BodyId(1)));
        doubted.remove(7, BodyId(1));
        assert!(!doubted.contains(7, BodyId(1)) && doubted.contains(7, BodyId(2)));
    }
}
