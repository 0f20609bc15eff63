//! Which commit somebody means by a name, an id, or the beginning of one, as `kubectl dot log` prints it.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use dotgraft_api::{Commit, Replica};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::client::Source;

/// Fewer characters of an id say too little.
const AT_LEAST: usize = 4;
/// Length of a whole id.
const WHOLE: usize = 36;

/// The name of a Commit object, or the whole id of a commit, for what is given. A whole id is taken as it is: it may be older than what is listed.
///
/// # Errors
/// No Commit has that name and no commit an id that begins so, or more than one has; the API server refuses to list Commits.
pub async fn commit(client: &Client, source: &Source, text: &str) -> Result<String> {
    if is_beginning(text) && text.len() == WHOLE {
        return Ok(text.to_owned());
    }
    let objects = Api::<Commit>::default_namespaced(client.clone()).list(&ListParams::default()).await?;
    if objects.iter().any(|o| o.name_any() == text) {
        return Ok(text.to_owned());
    }
    let mut ids: BTreeSet<String> = objects.items.into_iter().filter_map(|o| o.status?.id).collect();
    if let Some(fs_id) = &source.fs_id {
        // Commits without an object; not everybody may see Replicas.
        let of_it = ListParams::default().fields(&format!("spec.fsId={fs_id}"));
        if let Ok(replicas) = Api::<Replica>::all(client.clone()).list(&of_it).await {
            ids.extend(replicas.items.into_iter().filter_map(|r| r.status).flat_map(|s| s.recent_commits).map(|c| c.id));
        }
    }
    the_one(text, &ids, client.default_namespace())
}

/// It can be an id of which the end is missing.
fn is_beginning(text: &str) -> bool {
    let fits = |(at, c): (usize, char)| if matches!(at, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() };
    (AT_LEAST..=WHOLE).contains(&text.len()) && text.chars().enumerate().all(fits)
}

fn the_one(text: &str, ids: &BTreeSet<String>, namespace: &str) -> Result<String> {
    let begins: Vec<&String> = ids.iter().filter(|id| is_beginning(text) && id.starts_with(&text.to_ascii_lowercase())).collect();
    match begins.as_slice() {
        [] => bail!("there is no Commit `{text}` in namespace {namespace}, and no commit whose id begins so: `kubectl dot log` lists them"),
        [one] => Ok((*one).clone()),
        [first, second, ..] => bail!("{} commits have an id that begins with `{text}`: {first}, {second}; give more of it", begins.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_as_much_of_it_as_is_its_own() {
        let ids: BTreeSet<String> =
            ["01a22b93-83f1-7617-aa7c-d8a26c4a2acc", "01a22b93-8d08-72b9-baf1-f755b3e04130"].map(str::to_owned).into();
        let find = |text: &str| the_one(text, &ids, "ns").map_err(|e| e.to_string());
        for text in ["01a22b93-83f1", "01A22B93-83", "01a22b93-83f1-7617-aa7c-d8a26c4a2acc"] {
            assert_eq!(find(text).as_deref(), Ok("01a22b93-83f1-7617-aa7c-d8a26c4a2acc"), "{text}");
        }
        assert!(find("01a22b93-8").is_err_and(|e| e.contains("2 commits") && e.contains("01a22b93-8d08")), "both are named");
        for text in ["01a", "01a22b9383f1", "nightly", "01a22b93-83f2", ""] {
            assert!(find(text).is_err_and(|e| e.contains("kubectl dot log")), "{text}");
        }
    }
}
