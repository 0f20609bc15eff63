//! The btrfs driver on real btrfs: loop devices in temporary directories. Needs root, mkfs.btrfs, btrfs, python3, losetup and e2fsprogs;
//! fails without them. What is measured rather than asserted is in `measure`, ignored by default.

mod delete;
mod fence;
mod measure;
mod mounted;
mod pool;
mod quota;
mod receive;
mod send;
mod support;
