//! Which of the halves that a scrub has found damage in are made anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::report::Name;
use crate::faults::HalfName;
use crate::half::Half;
use crate::mirror::{Mirror, side};

#[derive(Default)]
pub(crate) struct Remade {
    pub resilvers: Vec<HalfName>,
    pub unmade: Vec<(HalfName, String)>,
}

/// Asks for them. `bad`: with how many places of theirs cannot be read.
pub(crate) fn begin(mirror: &Mirror, bad: &BTreeMap<Name, u64>) -> Remade {
    let mut remade = Remade::default();
    let halves = mirror.halves();
    for ((name, generation), places) in bad {
        // Somebody's read may have met the damage too: then it is another database by now.
        let same = halves.iter().find(|half| (half.name, half.generation) == (*name, *generation));
        let other = halves.iter().find(|half| half.name != *name);
        if let Some(half) = same {
            half.damage_found.fetch_add(*places, Ordering::Relaxed);
            half.damaged.store(true, Ordering::Relaxed);
        }
        let why_not = match (same, other) {
            (Some(half), Some(other)) => ask(mirror, half, other),
            // The last half has nothing to be made anew from.
            (Some(_), None) => continue,
            (None, _) => out_of_use(mirror, *name),
        };
        match why_not {
            Some(reason) => remade.unmade.push((*name, reason)),
            None if remade.resilvers.contains(name) => {}
            None => remade.resilvers.push(*name),
        }
    }
    let Remade { resilvers, unmade } = &mut remade;
    resilvers.retain(|name| unmade.iter().all(|(one, _)| one != name));
    if !bad.is_empty() {
        // One without room is tried too: whoever asks how it is learns why it stays.
        mirror.want_rebuild();
    }
    remade
}

/// Why it will not be made anew, where its disk has no room for that.
fn ask(mirror: &Mirror, half: &Arc<Half>, other: &Arc<Half>) -> Option<String> {
    let room = half.room_for_copy(&other.directory);
    if let Err(error) = room {
        // It is once there is.
        side(&mut mirror.sides.lock(), half.name).0.short = true;
        return Some(error.to_string());
    }
    // However short ago it could not be.
    side(&mut mirror.sides.lock(), half.name).0.rebuild = true;
    None
}

/// Why a half was dropped meanwhile that is not to be made anew.
fn out_of_use(mirror: &Mirror, name: HalfName) -> Option<String> {
    let mut sides = mirror.sides.lock();
    let own = side(&mut sides, name).0;
    let is_under_way = own.rebuild || *mirror.resilvering.lock() == Some(name);
    own.lost.clone().filter(|_| !is_under_way)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::begin;
    use crate::faults::HalfName;
    use crate::options::VolumeOptions;
    use crate::volume::Volume;

    #[test]
    fn a_half_that_was_dropped_for_its_room_is_not_made_anew_and_one_that_was_has_been() {
        let root = tempfile::tempdir().unwrap();
        let mirror = Some(root.path().join("b"));
        let volume = Volume::open(VolumeOptions { mirror, ..VolumeOptions::new(root.path().join("a")) }).unwrap();
        let mirror = volume.shared().store.mirror.as_ref().unwrap();
        let found = BTreeMap::from([((HalfName::B, 99), 1)]);
        let remade = begin(mirror, &found);
        assert_eq!((remade.resilvers, remade.unmade), (vec![HalfName::B], Vec::new()), "it is another database by now");
        assert!(volume.drop_full(HalfName::B, "its disk is full").unwrap());
        let remade = begin(mirror, &found);
        let why = vec![(HalfName::B, "its disk is full".to_owned())];
        assert_eq!((remade.resilvers, remade.unmade), (Vec::new(), why));
    }
}
