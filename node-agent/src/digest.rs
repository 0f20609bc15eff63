//! A BLAKE3 hash of a stream whose state can be saved and restored at any byte (replication.md §3, "Resume").
//!
//! `stream::apply` keeps one over the bytes it has applied; its saved form goes into the journal with each checkpoint, and
//! the sender proves with the digest that its prefix is the same. The result is plain BLAKE3: `b3sum` of the same bytes.
//!
//! BLAKE3 is a binary tree over chunks of 1,024 bytes. What is left of the current position falls into complete subtrees
//! whose sizes are the bits of the number of complete chunks, so a stack of at most 55 chaining values plus the current
//! chunk is the whole state. The last node of the tree is hashed differently (as root): so two neighbours are merged only
//! when a byte follows them, and bytes of a first chunk are kept until then.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

/// Bytes in a BLAKE3 chunk.
const CHUNK: usize = blake3::CHUNK_LEN;
/// `CHUNK` as a stream offset.
const CHUNK_U64: u64 = CHUNK as u64;
/// Largest subtree hashed in one call: more gains nothing, and it bounds the work of one step.
const MAX_SUBTREE: u64 = 1 << 20;
/// Version byte of the saved form.
const SAVED_VERSION: u8 = 1;
/// Bytes before the stack in the saved form: version, offset, length of the stack.
const SAVED_HEAD: usize = 1 + 8 + 1;

/// A BLAKE3 hasher that can be saved and restored.
#[derive(Debug, Clone, Default)]
pub struct ResumableHasher {
    /// Chaining values of the complete subtrees to the left, largest first: one for each set bit of their number of chunks,
    /// and one more for the last, which is not merged yet.
    stack: Vec<ChainingValue>,
    /// The current chunk: up to 1,023 bytes, and 1,024 if there is nothing else.
    tail: Vec<u8>,
    /// Bytes hashed so far.
    offset: u64,
}

/// A saved state that can't be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the saved hash state is damaged or of another version: {0}")]
pub struct RestoreError(&'static str);

impl ResumableHasher {
    /// A hasher of nothing so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes hashed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Hashes `input` after what came before. Fast (as `blake3::Hasher`) for inputs of 64 KiB and more.
    pub fn update(&mut self, mut input: &[u8]) {
        if !self.tail.is_empty() || self.stack.is_empty() {
            let (head, rest) = input.split_at((CHUNK - self.tail.len()).min(input.len()));
            self.tail.extend_from_slice(head);
            self.offset += head.len() as u64;
            input = rest;
            if self.tail.len() < CHUNK || (self.stack.is_empty() && input.is_empty()) {
                return;
            }
            let chunk = std::mem::take(&mut self.tail);
            self.offset -= CHUNK_U64;
            self.push(&chunk);
        }
        while input.len() >= CHUNK {
            let (subtree, rest) = input.split_at(subtree_len(self.offset, input.len()));
            self.push(subtree);
            input = rest;
        }
        self.tail.extend_from_slice(input);
        self.offset += input.len() as u64;
    }

    /// The BLAKE3 hash of everything so far. The hasher can go on.
    pub fn finalize(&self) -> [u8; 32] {
        let mut stack = self.stack.clone();
        let last = if self.tail.is_empty() {
            stack.pop()
        } else {
            merge_complete(&mut stack, self.offset - self.tail.len() as u64);
            Some(chaining_value(self.offset - self.tail.len() as u64, &self.tail))
        };
        let (Some(mut right), Some(mut left)) = (last, stack.pop()) else {
            return *blake3::hash(&self.tail).as_bytes();
        };
        while let Some(next) = stack.pop() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
            left = next;
        }
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    }

    /// The state in at most 2,794 bytes: version, offset (8 bytes, little-endian), number of chaining values, those, and
    /// the current chunk.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SAVED_HEAD + self.stack.len() * 32 + self.tail.len());
        out.push(SAVED_VERSION);
        out.extend_from_slice(&self.offset.to_le_bytes());
        // At most 55.
        out.push(u8::try_from(self.stack.len()).unwrap_or(u8::MAX));
        for value in &self.stack {
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&self.tail);
        out
    }

    /// The hasher that [`Self::save`] wrote.
    ///
    /// # Errors
    /// When the lengths do not fit the offset in it, or the version is not ours.
    pub fn restore(saved: &[u8]) -> Result<Self, RestoreError> {
        let (&version, rest) = saved.split_first().ok_or(RestoreError("empty"))?;
        if version != SAVED_VERSION {
            return Err(RestoreError("unknown version"));
        }
        let (offset, rest) = rest.split_first_chunk::<8>().ok_or(RestoreError("too short"))?;
        let offset = u64::from_le_bytes(*offset);
        let (&count, rest) = rest.split_first().ok_or(RestoreError("too short"))?;
        let (values, tail) = rest.split_at_checked(usize::from(count) * 32).ok_or(RestoreError("too short"))?;
        let complete = offset.checked_sub(tail.len() as u64).ok_or(RestoreError("too long"))?;
        let tail_fits = tail.len() < CHUNK || (tail.len() == CHUNK && count == 0);
        if !complete.is_multiple_of(CHUNK_U64) || !tail_fits || !stack_fits(count.into(), complete / CHUNK_U64, tail.is_empty()) {
            return Err(RestoreError("the lengths do not fit the offset"));
        }
        let (values, _) = values.as_chunks::<32>();
        Ok(Self { stack: values.to_vec(), tail: tail.to_vec(), offset })
    }

    /// Adds a complete subtree that starts at `offset`, after merging what is complete before it.
    fn push(&mut self, subtree: &[u8]) {
        merge_complete(&mut self.stack, self.offset);
        self.stack.push(chaining_value(self.offset, subtree));
        self.offset += subtree.len() as u64;
    }
}

/// Merges until there is one value for each set bit of the number of chunks before `offset`, because something follows.
fn merge_complete(stack: &mut Vec<ChainingValue>, offset: u64) {
    let wanted = (offset / CHUNK_U64).count_ones() as usize;
    while stack.len() > wanted {
        let (Some(right), Some(left)) = (stack.pop(), stack.pop()) else { return };
        stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
    }
}

impl Serialize for ResumableHasher {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.save()))
    }
}

impl<'de> Deserialize<'de> for ResumableHasher {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        Self::restore(&bytes).map_err(serde::de::Error::custom)
    }
}

/// Whether `count` values can stand for `chunks` complete chunks: before the last one was added there was one for each bit.
fn stack_fits(count: u32, chunks: u64, ends_here: bool) -> bool {
    if count == 0 || chunks == 0 {
        return count == 0 && chunks == 0;
    }
    // One value and nothing after it would be a whole tree, whose root is not a chaining value.
    (count > 1 || !ends_here)
        && (0..u64::BITS)
            .map_while(|bit| chunks.checked_sub(1 << bit).map(|before| (bit, before)))
            .any(|(bit, before)| before.count_ones() + 1 == count && (before == 0 || bit <= before.trailing_zeros()))
}

/// Length of the largest complete subtree that may start at `offset` and that `available` bytes, at least a chunk, fill.
fn subtree_len(offset: u64, available: usize) -> usize {
    let aligned = if offset == 0 { CHUNK_U64 } else { (1 << offset.trailing_zeros()).min(MAX_SUBTREE) };
    let fits = 1u64 << available.ilog2();
    // Both are at most MAX_SUBTREE, which is far below usize::MAX.
    usize::try_from(aligned.min(fits)).unwrap_or(CHUNK)
}

/// The chaining value of a subtree (or a chunk of any length) that starts at `offset`, a multiple of [`CHUNK`].
fn chaining_value(offset: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
    }

    fn hash_of(bytes: &[u8]) -> [u8; 32] {
        *blake3::hash(bytes).as_bytes()
    }

    #[test]
    fn every_length_around_chunk_and_subtree_borders_equals_blake3() {
        let data = sample(70_000);
        for base in [0usize, 1024, 2048, 3072, 4096, 7168, 8192, 16_384, 31_744, 65_536] {
            for len in base.saturating_sub(2)..=base + 2 {
                let mut hasher = ResumableHasher::new();
                hasher.update(&data[..len]);
                assert_eq!(hasher.finalize(), hash_of(&data[..len]), "length {len}");
            }
        }
    }

    #[test]
    fn saved_state_is_small_at_the_worst_offset() {
        // All 54 possible bits set, the last not merged, and a chunk.
        let hasher = ResumableHasher { stack: vec![[7; 32]; 55], tail: vec![1; CHUNK], offset: u64::MAX };
        assert_eq!(hasher.save().len(), 2794);
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let mut hasher = ResumableHasher::new();
        hasher.update(&sample(5000));
        let saved = hasher.save();
        assert!(ResumableHasher::restore(&saved).is_ok());
        assert!(ResumableHasher::restore(&saved[..saved.len() - 1]).is_err());
        assert!(ResumableHasher::restore(&[]).is_err());
        let mut other = saved.clone();
        other[0] = 2;
        assert!(ResumableHasher::restore(&other).is_err());
        let mut other = saved;
        other[1] ^= 1;
        assert!(ResumableHasher::restore(&other).is_err());
    }

    #[test]
    fn json_round_trip_goes_on_where_it_was() {
        let data = sample(9000);
        let mut hasher = ResumableHasher::new();
        hasher.update(&data[..4321]);
        let text = serde_json::to_string(&hasher).unwrap();
        let mut again: ResumableHasher = serde_json::from_str(&text).unwrap();
        again.update(&data[4321..]);
        assert_eq!(again.finalize(), hash_of(&data));
    }

    #[test]
    fn the_saved_form_of_version_1_is_golden() {
        let mut hasher = ResumableHasher::new();
        hasher.update(&sample(3 * CHUNK + 5));
        let saved = hasher.save();
        assert_eq!(saved.len(), SAVED_HEAD + 64 + 5);
        assert_eq!(blake3::hash(&saved).to_hex().as_str(), "dc9b5d3ed6568cae50eb7d5672ab47a5ea0b2cc9a90d0c24e4d504d1d0aba896");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_splits_and_restores_equal_blake3(
            len in 0usize..300_000,
            cuts in proptest::collection::vec((0usize..300_000, any::<bool>()), 0..12),
        ) {
            let data = sample(len);
            let mut cuts: Vec<_> = cuts.into_iter().map(|(at, save)| (at.min(len), save)).collect();
            cuts.sort_unstable();
            let mut hasher = ResumableHasher::new();
            let mut from = 0;
            for (at, save) in cuts {
                hasher.update(&data[from..at]);
                from = at;
                prop_assert_eq!(hasher.finalize(), hash_of(&data[..at]));
                if save {
                    hasher = ResumableHasher::restore(&hasher.save()).unwrap();
                }
            }
            hasher.update(&data[from..]);
            prop_assert_eq!(hasher.offset(), len as u64);
            prop_assert_eq!(hasher.finalize(), hash_of(&data));
        }
    }
}
