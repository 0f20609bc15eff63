//! The Unix socket, as a program of this node sees it.

use std::path::PathBuf;

use dotgraft_agent::peer::local;
use dotgraft_agent::peer::server::ServerSettings;
use dotgraft_agent::peer::status::problem_of;
use dotgraft_engine::model::Reason;
use dotgraft_proto::agent::v1 as wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;
use wire::local_client::LocalClient;

use crate::raw;
use crate::support::*;

/// A node that serves its socket.
async fn served() -> (Node, PathBuf) {
    let node = Node::start("b", Ca::new("ca").issue(&Leaf::of("b")), ServerSettings::default()).await;
    let path = node.tls_dir.path().join("run/agent.sock");
    let service = local::serve(&path, node.registry.clone(), "0:0".to_owned(), node.cancel.clone()).unwrap();
    tokio::spawn(async move { service.await.unwrap() });
    UnixStream::connect(&path).await.expect("it listens from the call on");
    (node, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_the_node_mounts_looks_fences_thaws_and_unmounts() {
    let (node, path) = served().await;
    let fs = actor(&node, Act::Store).fs;
    let fs_id = fs.to_string();
    let mut client = LocalClient::new(raw::channel(UnixStream::connect(&path).await.unwrap()).await);
    let target = "/mnt/nothing-is-mounted-here".to_owned();
    let mount = |target: &str| wire::MountRequest { fs_id: fs_id.clone(), target: target.into(), ..wire::MountRequest::default() };
    soon(client.mount(mount(&target))).await.unwrap();
    soon(client.unmount(wire::UnmountRequest { target: target.clone() })).await.unwrap();
    soon(client.unmount(wire::UnmountRequest { target })).await.unwrap();

    let one = soon(client.status(wire::StatusRequest { fs_id: fs_id.clone() })).await.unwrap().into_inner().json;
    let all = soon(client.status(wire::StatusRequest::default())).await.unwrap().into_inner().json;
    let (one, all): (serde_json::Value, serde_json::Value) = (serde_json::from_str(&one).unwrap(), serde_json::from_str(&all).unwrap());
    assert_eq!(all[&fs_id], one);
    assert_eq!(one["fsId"], fs_id);

    let fenced = soon(client.fence(wire::FenceRequest { fs_id: fs_id.clone(), force: true })).await.unwrap().into_inner();
    assert_eq!((fenced.snapshot, fenced.generation), (commit_id(9).to_string(), 77));
    soon(client.thaw(wire::ThawRequest { fs_id: fs_id.clone() })).await.unwrap();

    let status = soon(client.fence(wire::FenceRequest { fs_id: fs_id.clone(), force: false })).await.unwrap_err();
    assert_eq!((status.code(), problem_of(&status).reason), (Code::FailedPrecondition, Reason::Mounted));
    let status = soon(client.mount(mount("relative/path"))).await.unwrap_err();
    assert_eq!((status.code(), problem_of(&status).reason), (Code::InvalidArgument, Reason::Invalid));
    let unknown = wire::ThawRequest { fs_id: dotgraft_engine::ids::FsId::from_uuid(uuid::Uuid::now_v7()).to_string() };
    assert_eq!(soon(client.thaw(unknown)).await.unwrap_err().code(), Code::NotFound);
    let foreign = wire::UnmountRequest { target: "/proc".into() };
    assert_eq!(soon(client.unmount(foreign)).await.unwrap_err().code(), Code::InvalidArgument, "/proc is not ours to unmount");
}

/// One request with that `:authority`, in raw HTTP/2: literal header fields without Huffman (RFC 7541 §6.2.2). Returns the
/// type of the first frame on stream 1.
async fn answer_to_authority(path: &PathBuf, authority: &str) -> u8 {
    let mut headers = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in
        [(":path", "/dotgraft.agent.v1.Local/Status"), (":authority", authority), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.as_bytes());
        }
    }
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    out.extend([0, 0, u8::try_from(headers.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
    out.extend(headers);
    out.extend([0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]); // an empty message, end of stream
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(&out).await.unwrap();
    soon(async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            stream.read_exact(&mut vec![0; len]).await.unwrap();
            if head[8] == 1 && head[3] != 8 {
                return head[3];
            }
        }
    })
    .await
}

/// csi.md §1, "Hazard": clients put the socket's path there, which the HTTP library alone would reset.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_no_host_is_served() {
    const HEADERS: u8 = 1;
    let (_node, path) = served().await;
    let text = path.to_str().unwrap();
    for authority in ["localhost", text, &text.replace('/', "%2F")] {
        assert_eq!(answer_to_authority(&path, authority).await, HEADERS, "{authority:?}");
    }
}
