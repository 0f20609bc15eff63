//! The btrfs driver on real btrfs: loop devices in temporary directories. Needs root, mkfs.btrfs, btrfs, python3, losetup and e2fsprogs;
//! fails without them. What is measured rather than asserted is in `measure`, ignored by default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::many_single_char_names, reason = "t is the pool, v a volume, c a commit, n its group's number")]

mod deep;
mod delete;
mod fence;
mod kept;
mod measure;
mod mounted;
mod nested;
mod newer;
mod older;
mod pool;
mod quota;
mod receive;
mod received;
mod send;
mod strays;
mod support;
