//! A BLAKE3 hash of a stream whose state can be saved and restored at any byte (replication.md §3, "Resume").
//!
//! `stream::apply` keeps one over the bytes it has applied; its saved form goes into the journal with each checkpoint, and
//! the sender proves with the digest that its prefix is the same. The result is plain BLAKE3: `b3sum` of the same bytes.
//!
//! BLAKE3 is a binary tree over chunks of 1,024 bytes. What is left of the current position falls into complete subtrees
//! whose sizes are the bits of the number of complete chunks, so a stack of at most 54 chaining values plus the current
//! chunk is the whole state. The last chunk is held back until a byte follows it, because the last node of the tree is
//! hashed differently (as root).

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
/// Bytes before the stack in the saved form: version and offset.
const SAVED_HEAD: usize = 1 + 8;

/// A BLAKE3 hasher that can be saved and restored.
#[derive(Debug, Clone, Default)]
pub struct ResumableHasher {
    /// Chaining values of the complete subtrees to the left, largest first; one for each set bit of `chunks()`.
    stack: Vec<ChainingValue>,
    /// The current chunk, 0 to 1,024 bytes; empty only while nothing has been hashed.
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
        let room = CHUNK - self.tail.len();
        let (head, rest) = input.split_at(room.min(input.len()));
        self.tail.extend_from_slice(head);
        self.offset += head.len() as u64;
        input = rest;
        if input.is_empty() {
            return;
        }
        self.push_tail();
        while input.len() > CHUNK {
            let len = subtree_len(self.offset, input.len());
            let (subtree, rest) = input.split_at(len);
            let value = chaining_value(self.offset, subtree);
            self.offset += len as u64;
            self.push(value, len as u64 / CHUNK_U64);
            input = rest;
        }
        self.tail.extend_from_slice(input);
        self.offset += input.len() as u64;
    }

    /// The BLAKE3 hash of everything so far. The hasher can go on.
    pub fn finalize(&self) -> [u8; 32] {
        let Some((last, left)) = self.stack.split_last() else {
            return *blake3::hash(&self.tail).as_bytes();
        };
        let mut right = chaining_value(self.offset - self.tail.len() as u64, &self.tail);
        let mut next = last;
        for value in left.iter().rev() {
            right = merge_subtrees_non_root(next, &right, Mode::Hash);
            next = value;
        }
        *merge_subtrees_root(next, &right, Mode::Hash).as_bytes()
    }

    /// The state in at most 2,761 bytes: version, offset (8 bytes, little-endian), chaining values, current chunk.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SAVED_HEAD + self.stack.len() * 32 + self.tail.len());
        out.push(SAVED_VERSION);
        out.extend_from_slice(&self.offset.to_le_bytes());
        for value in &self.stack {
            out.extend_from_slice(value);
        }
        out.extend_from_slice(&self.tail);
        out
    }

    /// The hasher that [`Self::save`] wrote.
    ///
    /// # Errors
    /// When the length does not fit the offset in it, or the version is not ours.
    pub fn restore(saved: &[u8]) -> Result<Self, RestoreError> {
        let (&version, rest) = saved.split_first().ok_or(RestoreError("empty"))?;
        if version != SAVED_VERSION {
            return Err(RestoreError("unknown version"));
        }
        let (offset, rest) = rest.split_first_chunk::<8>().ok_or(RestoreError("too short"))?;
        let offset = u64::from_le_bytes(*offset);
        let chunks = complete_chunks(offset);
        let count = chunks.count_ones() as usize;
        let tail = usize::try_from(offset - chunks * CHUNK_U64).map_err(|_| RestoreError("offset"))?;
        if rest.len() != count * 32 + tail {
            return Err(RestoreError("the length does not fit the offset"));
        }
        let (values, tail) = rest.split_at(count * 32);
        let (values, _) = values.as_chunks::<32>();
        Ok(Self { stack: values.to_vec(), tail: tail.to_vec(), offset })
    }

    /// Turns the held-back chunk, now known not to be the last, into a chaining value.
    fn push_tail(&mut self) {
        let value = chaining_value(self.offset - self.tail.len() as u64, &self.tail);
        self.tail.clear();
        self.push(value, 1);
    }

    /// Pushes a complete subtree of `chunks` chunks (a power of two) that ends at `offset`, merging equal neighbours.
    fn push(&mut self, mut value: ChainingValue, mut chunks: u64) {
        let total = self.offset / CHUNK_U64;
        // A set bit of the chunk count before this subtree is a stack entry of that size: merge while it is our size.
        let before = total - chunks;
        while before & chunks != 0 {
            let Some(left) = self.stack.pop() else { break };
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
            chunks <<= 1;
        }
        self.stack.push(value);
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

/// Chunks before the held-back one at `offset` bytes.
fn complete_chunks(offset: u64) -> u64 {
    offset.saturating_sub(1) / CHUNK_U64
}

/// Length of the largest complete subtree that may start at `offset` and leaves at least one of `available` bytes.
fn subtree_len(offset: u64, available: usize) -> usize {
    let aligned = if offset == 0 { MAX_SUBTREE } else { (1 << offset.trailing_zeros()).min(MAX_SUBTREE) };
    let available = available as u64 - 1;
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
        // All 54 possible bits set: one byte short of 2^64.
        let hasher = ResumableHasher { stack: vec![[7; 32]; 54], tail: vec![1; CHUNK], offset: u64::MAX - CHUNK_U64 + 1 };
        let chunks = complete_chunks(hasher.offset);
        assert!(chunks.count_ones() <= 54);
        assert!(hasher.save().len() <= 3 * 1024);
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
        other[2] ^= 0x40;
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
        assert_eq!(blake3::hash(&saved).to_hex().as_str(), "76b171f62061131e04f19a1769539fb259c5efb44f809066d0cb4b5244879d4d");
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
