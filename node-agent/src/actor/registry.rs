//! Which Filesystems live on this node: `FsId` → handle. It starts actors and forgets those that ended; a slot carries a
//! generation, so that an old actor's exit can't remove its successor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dotgraft_engine::ids::FsId;

use super::handle::FsHandle;

/// Cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    slots: Arc<Mutex<BTreeMap<FsId, Slot>>>,
}

#[derive(Debug)]
struct Slot {
    generation: u64,
    handle: FsHandle,
}

impl Registry {
    /// The owner of `fs`, if it lives here.
    pub fn get(&self, fs: FsId) -> Option<FsHandle> {
        self.lock().get(&fs).map(|s| s.handle.clone())
    }
    /// All of them, by id.
    pub fn all(&self) -> Vec<FsHandle> {
        self.lock().values().map(|s| s.handle.clone()).collect()
    }
    /// Requests that wait for all of them together.
    pub fn waiting(&self) -> usize {
        self.lock().values().map(|s| s.handle.waiting()).sum()
    }
    /// Puts an actor in; returns the slot's generation for `remove`.
    pub fn insert(&self, handle: FsHandle) -> u64 {
        let mut slots = self.lock();
        let generation = slots.get(&handle.fs_id()).map_or(1, |s| s.generation + 1);
        slots.insert(handle.fs_id(), Slot { generation, handle });
        generation
    }
    /// Takes an actor out, unless a successor sits in the slot already.
    pub fn remove(&self, fs: FsId, generation: u64) {
        let mut slots = self.lock();
        if slots.get(&fs).is_some_and(|s| s.generation == generation) {
            slots.remove(&fs);
        }
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<FsId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
