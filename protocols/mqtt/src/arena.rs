//! A slab whose keys are never mistaken for their successors.

/// Slots in a vector, reused; a key carries the generation of its slot, so that a key that outlives its value finds
/// nothing rather than the value that came after.
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// Of a new slot: behind those of all slots that stood in its place and were given up.
    first_generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) index: u32,
    generation: u32,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Arena<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), first_generation: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Key { index, generation: slot.generation };
        }
        let index = self.slots.len() as u32;
        let generation = self.first_generation;
        self.slots.push(Slot { generation, value: Some(value) });
        Key { index, generation }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        if self.slots.len() >= MANY && self.len() < self.slots.len() / 4 {
            self.shrink();
        }
        Some(value)
    }

    /// Gives up the free slots at the end.
    fn shrink(&mut self) {
        let used = self.slots.iter().rposition(|slot| slot.value.is_some()).map_or(0, |last| last + 1);
        if used > self.slots.len() / 2 {
            return;
        }
        for slot in self.slots.drain(used..) {
            self.first_generation = self.first_generation.max(slot.generation.wrapping_add(1));
        }
        self.slots.shrink_to(used * 2);
        self.free.retain(|index| (*index as usize) < used);
        self.free.shrink_to(used);
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }
}

/// Fewer slots are not worth giving up.
const MANY: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_crowd_the_slots_are_given_up_and_old_keys_find_nothing() {
        let mut arena = Arena::new();
        let keys: Vec<Key> = (0..10_000).map(|number| arena.insert(number)).collect();
        for key in &keys[3..] {
            arena.remove(*key);
        }
        assert!(arena.slots.capacity() < 300, "{}", arena.slots.capacity());
        assert_eq!(arena.len(), 3);
        let later: Vec<Key> = (0..100).map(|number| arena.insert(number)).collect();
        assert!(keys[3..].iter().all(|key| arena.get(*key).is_none()));
        assert!(later.iter().chain(&keys[..3]).all(|key| arena.get(*key).is_some()));
    }

    #[test]
    fn a_key_of_a_removed_value_does_not_find_its_successor() {
        let mut arena = Arena::new();
        let first = arena.insert('a');
        assert_eq!(arena.remove(first), Some('a'));
        let second = arena.insert('b');
        assert_eq!(first.index, second.index);
        assert_eq!((arena.get(first), arena.get(second), arena.len()), (None, Some(&'b'), 1));
    }
}
