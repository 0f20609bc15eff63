//! One operation at a time per volume and path: the kubelet asks again while the first one still runs (failures.md, row 16).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::refusal::Refusal;

type Key = (String, PathBuf);

/// What runs. A cheap clone.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<BTreeSet<Key>>>);

/// The right to work on a volume at a path, as long as it lives.
#[derive(Debug)]
pub struct Turn {
    all: InFlight,
    key: Key,
}

impl InFlight {
    /// The turn, or `ABORTED` while another has it.
    ///
    /// # Errors
    ///
    /// `ABORTED` as said.
    pub fn begin(&self, volume: &str, path: &Path) -> Result<Turn, Refusal> {
        let key = (volume.to_owned(), path.to_owned());
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return Ok(Turn { all: self.clone(), key });
        }
        Err(Refusal::aborted(format!("an operation on volume {volume} at {} is in progress; ask again", path.display())))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn the_second_is_aborted_until_the_first_is_done_and_others_are_not_in_its_way() {
        let all = InFlight::default();
        let first = all.begin("v", Path::new("/a")).unwrap();
        assert_eq!(all.begin("v", Path::new("/a")).unwrap_err().code, Code::Aborted);
        let _other = (all.begin("v", Path::new("/b")).unwrap(), all.begin("w", Path::new("/a")).unwrap());
        drop(first);
        all.begin("v", Path::new("/a")).unwrap();
    }
}
