use super::*;
use crate::testing::FS;

fn at(node: &str, read_only: bool) -> Publication {
    Publication { node: node.into(), read_only }
}
fn code(r: Result<Option<Vec<Publication>>, CsiError>) -> tonic::Code {
    r.map_or_else(|e| e.code(), |_| tonic::Code::Ok)
}

#[test]
fn a_node_is_added_once() {
    let list = with(&[], "n1", Way::Write).unwrap().unwrap();
    assert_eq!(list, [at("n1", false)]);
    assert_eq!(with(&list, "n1", Way::Write).unwrap(), None);
    assert_eq!(with(&list, "n1", Way::Copy).unwrap(), None, "who writes there may read there");
    let both = with(&list, "n2", Way::Copy).unwrap().unwrap();
    assert_eq!(both, [at("n1", false), at("n2", true)]);
}

#[test]
fn two_nodes_never_write() {
    assert_eq!(code(with(&[at("n1", false)], "n2", Way::Write)), tonic::Code::FailedPrecondition);
    assert_eq!(code(with(&[at("n1", true)], "n2", Way::Write)), tonic::Code::Ok, "n1 only reads a commit");
}

#[test]
fn the_same_node_in_another_way_is_incompatible() {
    assert_eq!(code(with(&[at("n1", false)], "n1", Way::Read)), tonic::Code::AlreadyExists);
    assert_eq!(with(&[at("n1", true)], "n1", Way::Write).unwrap(), Some(vec![at("n1", false)]));
}

#[test]
fn the_list_is_bounded() {
    let full: Vec<_> = (0..MOST).map(|i| at(&format!("n{i}"), true)).collect();
    assert_eq!(code(with(&full, "x", Way::Copy)), tonic::Code::ResourceExhausted);
    assert_eq!(code(with(&full, "n3", Way::Copy)), tonic::Code::Ok);
}

#[test]
fn letting_go_takes_one_node_or_all_and_nothing_twice() {
    let list = [at("n1", false), at("n2", true)];
    assert_eq!(without(&list, Some("n1"), false), Some(vec![at("n2", true)]));
    assert_eq!(without(&list, None, false), Some(vec![]));
    assert_eq!(without(&list, Some("n9"), false), None);
    assert_eq!(without(&list, Some("n1"), true), None, "a read-only handle lets no writer go");
    assert_eq!(without(&list, None, true), Some(vec![at("n1", false)]));
}

#[test]
fn a_handle_says_how_it_can_be_published() {
    let (head, ro) = (VolumeHandle::Head(FS.parse().unwrap()), VolumeHandle::Newest(FS.parse().unwrap()));
    assert_eq!(way(&head, Use::Write, false).unwrap(), Way::Write);
    assert_eq!(way(&head, Use::Write, true).unwrap(), Way::Read);
    assert!(way(&head, Use::ReadMany, true).is_err());
    assert_eq!(way(&ro, Use::ReadMany, false).unwrap(), Way::Copy);
    assert_eq!(way(&ro, Use::Write, true).unwrap(), Way::Copy);
    assert!(way(&ro, Use::Write, false).is_err());
}
