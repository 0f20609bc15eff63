//! CSI on a node (rows 16 and 17 of the table of failures, and csi.md): what the kubelet asks of an agent, by its socket.
//!
//! No kubelet is needed: the cases speak CSI as it would, also as it should not (twice, at once, while the agent dies).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dotgraft_proto::csi::v1::identity_client::IdentityClient;
use dotgraft_proto::csi::v1::volume_capability::access_mode::Mode;
use dotgraft_proto::csi::v1::volume_capability::{AccessType, BlockVolume};
use dotgraft_proto::csi::v1::{self as csi, VolumeCapability};
use dotgraft_proto::registration::registration_client::RegistrationClient;
use dotgraft_proto::registration::{InfoRequest, RegistrationStatus};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::wait::{eventually, throughout};
use crate::steps::csi::{capability, channel, refused, text, with_options};
use crate::steps::left::nothing_left;
use crate::steps::mount::Pod;

/// All cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("csi-node-lifecycle", "stage, publish, stats, expansion, unpublish, unstage, each of them twice", lifecycle),
        Case::new("csi-node-refusals", "what can't be is refused with CSI's code and a sentence that says what to use", refusals),
        Case::new("csi-read-only", "a read-only handle is pinned to a commit when it is staged, also on a replica", read_only),
        Case::new(
            "csi-unstaged",
            "a pod starts where the staging mount of its volume is gone, and sees the commit that others of the volume see",
            unstaged,
        ),
        Case::new("csi-registration", "the kubelet finds the driver's registration, also after somebody removed it", registration),
        Case::new("16-concurrent", "the same call many times at once: each succeeds or is ABORTED, and one mount results", concurrent),
        Case::new("16-killed", "calls repeated after the agent died between any two, with a writer in the volume", killed),
        Case::new("17-rmdir", "unpublish removes one empty directory and nothing else", rmdir),
        Case::new("3-published", "deletion waits for a published volume and names its path", published),
    ]
}

fn writer() -> VolumeCapability {
    capability(Mode::SingleNodeMultiWriter, "")
}

fn reader() -> VolumeCapability {
    capability(Mode::MultiNodeReaderOnly, "")
}

/// How many mounts are at exactly that path.
fn mounts_at(path: &Path) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(table.lines().filter(|l| l.split(' ').nth(1).is_some_and(|p| Path::new(p) == path)).count())
}

/// What the kernel lets be done through the mount at a path, such as `rw` and `nosuid`.
fn options_at(path: &Path) -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let line = table.lines().rfind(|l| l.split(' ').nth(1).is_some_and(|p| Path::new(p) == path)).context("nothing is mounted there")?;
    Ok(line.split(' ').nth(3).unwrap_or_default().split(',').map(str::to_owned).collect())
}

async fn lifecycle(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Pod::new(&t, "n1", "p")?;
    let info = pod.node().await?.node_get_info(csi::NodeGetInfoRequest {}).await?.into_inner();
    let segments = info.accessible_topology.context("no topology")?.segments;
    ensure!(info.node_id == "n1" && info.max_volumes_per_node == 500, "{} {}", info.node_id, info.max_volumes_per_node);
    ensure!(segments.get("topology.dotgraft.dev/pool").is_some_and(|v| v == "default"), "{segments:?}");
    ensure!(segments.get("topology.dotgraft.dev/node").is_some_and(|v| v == "n1"), "{segments:?}");
    let mut identity = IdentityClient::new(channel(&pod.socket).await?);
    ensure!(identity.probe(csi::ProbeRequest {}).await?.into_inner().ready == Some(true), "it must be ready");
    for round in ["one", "two"] {
        for _ in 0..2 {
            pod.stage(&fs_id, writer()).await??;
        }
        for _ in 0..2 {
            pod.publish(&fs_id, writer(), false).await??;
        }
        ensure!(mounts_at(&pod.staging())? == 1 && mounts_at(&pod.target())? == 1, "one mount each");
        std::fs::write(pod.target().join(round), round)?;
        let options = options_at(&pod.target())?;
        ensure!(["rw", "nosuid", "nodev"].iter().all(|o| options.iter().any(|is| is == o)), "{options:?}");
        let second = pod.dir.join("second");
        pod.publish_at(&fs_id, &second, with_options(Mode::SingleNodeMultiWriter, &["suid", "noexec"]), true).await??;
        let options = options_at(&second)?;
        ensure!(options.iter().any(|o| o == "noexec") && !options.iter().any(|o| o == "nosuid"), "{options:?}");
        ensure!(std::fs::read_to_string(second.join(round))? == round, "both paths show the same");
        ensure!(std::fs::write(second.join("x"), "x").is_err(), "a read-only path can be written");
        refused(pod.publish(&fs_id, writer(), true).await?, Code::AlreadyExists, "published writable")?;
        refused(pod.publish_at(&fs_id, &second, writer(), false).await?, Code::AlreadyExists, "read-only")?;
        for path in [pod.staging(), pod.target()] {
            let stats = pod.stats(&fs_id, &path).await??;
            let usage = stats.usage.first().context("no usage")?;
            ensure!(usage.total == 2 * (512 << 20) && usage.used + usage.available == usage.total, "{usage:?}");
            let condition = stats.volume_condition.context("no condition")?;
            ensure!(!condition.abnormal && condition.message.contains("open for writing"), "{condition:?}");
        }
        ensure!(pod.expand(&fs_id, 512 << 20).await?? == 512 << 20, "it has that much");
        for _ in 0..2 {
            pod.unpublish_at(&fs_id, &second).await??;
            pod.unpublish(&fs_id).await??;
        }
        ensure!(!pod.target().exists() && !second.exists(), "unpublish removes the directory it made");
        for _ in 0..2 {
            pod.unstage(&fs_id).await??;
        }
        ensure!(pod.staging().is_dir() && mounts_at(&pod.staging())? == 0, "the staging directory is the kubelet's");
    }
    pod.start(&fs_id).await?;
    ensure!(std::fs::read_to_string(pod.target().join("one"))? == "one", "what was written must still be there");
    t.kube().patch("Dot", &t.namespace, "d", "", &json!({"spec": {"capacity": "700Mi"}})).await?;
    let grown = eventually("the expansion to arrive", STEP, || async { Ok(pod.expand(&fs_id, 700 << 20).await??) }).await?;
    ensure!(grown == 700 << 20, "{grown}");
    pod.end(&fs_id).await
}

async fn refusals(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Pod::new(&t, "n1", "p")?;
    refused(pod.stage(&fs_id, capability(Mode::MultiNodeMultiWriter, "")).await?, Code::InvalidArgument, "ReadWriteOnce")?;
    let block = VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..writer() };
    refused(pod.stage(&fs_id, block).await?, Code::InvalidArgument, "volumeMode: Filesystem")?;
    refused(pod.stage("", writer()).await?, Code::InvalidArgument, "volume_id")?;
    refused(pod.stage("some-volume", writer()).await?, Code::NotFound, "no volume")?;
    let unknown = uuid::Uuid::now_v7().to_string();
    refused(pod.stage(&unknown, writer()).await?, Code::NotFound, "no copy")?;
    refused(pod.publish(&fs_id, writer(), false).await?, Code::FailedPrecondition, "NodeStageVolume comes first")?;
    ensure!(!pod.target().exists(), "a refused publish leaves no directory");
    refused(pod.stats(&fs_id, &pod.target()).await?, Code::NotFound, "not mounted")?;
    pod.unpublish("some-volume").await??;
    pod.unstage(&unknown).await??;

    pod.stage(&fs_id, writer()).await??;
    let outside = t.dir.join("outside");
    std::fs::create_dir_all(&outside)?;
    refused(pod.publish_at(&fs_id, &outside.join("m"), writer(), false).await?, Code::InvalidArgument, "not below")?;
    std::os::unix::fs::symlink(&outside, pod.dir.join("link"))?;
    refused(pod.publish_at(&fs_id, &pod.dir.join("link/m"), writer(), false).await?, Code::InvalidArgument, "not below")?;
    ensure!(std::fs::read_dir(&outside)?.count() == 0, "something was made outside the kubelet's directory");
    let once = capability(Mode::SingleNodeSingleWriter, "");
    pod.publish(&fs_id, once.clone(), false).await??;
    pod.publish(&fs_id, once.clone(), false).await??;
    refused(pod.publish_at(&fs_id, &pod.dir.join("other"), once, false).await?, Code::FailedPrecondition, "single writer")?;
    refused(pod.expand(&fs_id, 1 << 40).await?, Code::Aborted, "on their way")?;
    pod.end(&fs_id).await?;

    let commit = t.commit("c", "d").await?;
    t.push("j", "d", "n2").await?;
    t.arrived(&fs_id, &commit, "n2", STEP).await?;
    let elsewhere = Pod::new(&t, "n2", "p")?;
    refused(elsewhere.stage(&fs_id, writer()).await?, Code::FailedPrecondition, "NotOwner")
}

async fn read_only(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    let (follow, fixed) = (Pod::new(&t, "n2", "follow")?, Pod::new(&t, "n2", "fixed")?);
    let newest = format!("ro/{fs_id}");
    let mut commits = Vec::new();
    t.push("j", "d", "n2").await?;
    for name in ["c1", "c2"] {
        std::fs::write(head.join(name), name)?;
        commits.push(t.commit(name, "d").await?);
        t.trigger("j", name).await?;
        t.arrived(&fs_id, &commits[commits.len() - 1], "n2", STEP).await?;
        follow.stage(&newest, reader()).await??;
    }
    let seen = |pod: &Pod| pod.target().join("c2").exists();
    follow.publish(&newest, reader(), false).await??;
    ensure!(!seen(&follow), "what was staged with c1 stays pinned to it");
    follow.end(&newest).await?;
    follow.stage(&newest, reader()).await??;
    follow.publish(&newest, reader(), false).await??;
    ensure!(seen(&follow), "staged anew, it shows the newest commit");
    let first = format!("{newest}@{}", commits[0]);
    fixed.stage(&first, reader()).await??;
    fixed.publish(&first, reader(), true).await??;
    ensure!(!seen(&fixed) && fixed.target().join("c1").exists(), "a handle with a commit shows that commit");
    std::fs::write(head.join("c3"), "c3")?;
    let third = t.commit("c3", "d").await?;
    t.trigger("j", "c3").await?;
    t.arrived(&fs_id, &third, "n2", STEP).await?;
    let again = follow.dir.join("again");
    follow.stage(&newest, reader()).await??;
    follow.publish_at(&newest, &again, reader(), true).await??;
    ensure!(!again.join("c3").exists(), "what is staged stays pinned");
    ensure!(std::fs::write(again.join("x"), "x").is_err(), "it can be written");
    refused(follow.stage(&newest, writer()).await?, Code::InvalidArgument, "ReadOnlyMany")?;
    follow.unpublish_at(&newest, &again).await??;
    follow.end(&newest).await?;
    follow.stage(&newest, reader()).await??;
    follow.publish(&newest, reader(), true).await??;
    ensure!(follow.target().join("c3").exists(), "after a restart it shows the newest");
    follow.end(&newest).await?;
    fixed.end(&first).await
}

/// Unmounts as an administrator does, or as a reboot has.
fn take_away(path: &Path) -> Result<()> {
    Ok(rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?)
}

async fn unstaged(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let head = t.mount("n1", &fs_id).await?;
    std::fs::write(head.join("a"), "first")?;
    let first = t.commit("c1", "d").await?;
    let [newest, fixed] = [format!("ro/{fs_id}"), format!("ro/{fs_id}@{first}")];
    let view = format!("{fixed}/0123456789abcdef");
    let pods = [("newest", &newest, reader()), ("fixed", &fixed, reader()), ("view", &view, reader()), ("head", &fs_id, writer())];
    for (name, volume, capability) in pods {
        let pod = Pod::new(&t, "n1", name)?;
        pod.stage(volume, capability.clone()).await??;
        pod.publish(volume, capability.clone(), false).await??;
        std::fs::write(head.join("a"), name)?;
        t.commit(&format!("c-{name}"), "d").await?;
        take_away(&pod.staging())?;
        // The kubelet's second pod: another directory of the same PV's name.
        let second = pod.dir.join("second").join(name).join("mount");
        std::fs::create_dir_all(second.parent().context("no parent")?)?;
        pod.publish_at(volume, &second, capability.clone(), false).await?.with_context(|| format!("{name}: the second pod"))?;
        let seen = std::fs::read_to_string(second.join("a"))?;
        ensure!(seen == if name == "head" { name } else { "first" }, "{name}: the second pod sees {seen:?}");
        ensure!(mounts_at(&pod.staging())? == 1, "{name}: nothing is staged for the next");
        pod.unpublish_at(volume, &second).await??;
        pod.end(volume).await?;
    }
    // Where nothing shows what it was, it is the newest, as for any pod that comes first.
    let pod = Pod::new(&t, "n1", "alone")?;
    pod.stage(&newest, reader()).await??;
    take_away(&pod.staging())?;
    pod.publish(&newest, reader(), true).await??;
    ensure!(std::fs::read_to_string(pod.target().join("a"))? == "head", "not the newest");
    pod.end(&newest).await
}

async fn registration(t: Arc<Test>) -> Result<()> {
    let node = t.rig.node("n1")?;
    let socket = node.kubelet_dir().join("plugins_registry/csi.dotgraft.dev-reg.sock");
    let ask = || async {
        let info = RegistrationClient::new(channel(&socket).await?).get_info(InfoRequest {}).await?.into_inner();
        ensure!(info.r#type == "CSIPlugin" && info.name == "csi.dotgraft.dev" && info.supported_versions == ["1.0.0"], "{info:?}");
        ensure!(Path::new(&info.endpoint) == node.csi_socket(), "{info:?}");
        Ok(())
    };
    ask().await?;
    let only = std::fs::read_dir(socket.parent().context("no directory")?)?.count();
    ensure!(only == 1, "{only} files where the kubelet looks for plugins");
    for gone in [&socket, &node.csi_socket()] {
        std::fs::remove_file(gone)?;
        eventually("the socket to be made anew", STEP, ask).await?;
        let there = || async { channel(gone).await.map(|_| ()) };
        eventually("the removed socket to answer again", STEP, there).await?;
    }
    let say = |ok, error: &str| RegistrationStatus { plugin_registered: ok, error: error.into() };
    let mut client = RegistrationClient::new(channel(&socket).await?);
    client.notify_registration_status(say(false, "no such node")).await?;
    let ready = || crate::rig::programs::ready(&node.http);
    ensure!(ready().await.is_err_and(|e| e.to_string().contains("no such node")), "a refused driver must be seen in /readyz");
    client.notify_registration_status(say(true, "")).await?;
    ready().await?;
    t.rig.processes.signal("n1", Signal::TERM)?;
    eventually("the agent to end", STEP, || async { t.rig.processes.exited("n1")?.context("it runs").map(|_| ()) }).await?;
    ensure!(socket.exists() && node.csi_socket().exists(), "the sockets must stay, or the kubelet forgets the driver");
    t.rig.start("n1")?;
    t.rig.ready(STEP).await?;
    eventually("the next agent to answer", STEP, ask).await
}

/// A call under way.
type Call = futures::future::BoxFuture<'static, Result<Result<(), Status>>>;

async fn concurrent(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Arc::new(Pod::new(&t, "n1", "p")?);
    let storm = |call: fn(Arc<Pod>, String) -> Call| {
        let (pod, fs_id) = (pod.clone(), fs_id.clone());
        async move {
            let results = futures::future::join_all((0..16).map(|_| call(pod.clone(), fs_id.clone()))).await;
            let mut done = 0;
            for result in results {
                match result? {
                    Ok(()) => done += 1,
                    Err(status) if status.code() == Code::Aborted => {}
                    Err(status) => return Err(status.into()),
                }
            }
            ensure!(done > 0, "none of 16 calls at once succeeded");
            Ok(())
        }
    };
    for _ in 0..3 {
        storm(|pod, fs| Box::pin(async move { pod.stage(&fs, writer()).await })).await?;
        storm(|pod, fs| Box::pin(async move { pod.publish(&fs, writer(), false).await })).await?;
        ensure!(mounts_at(&pod.staging())? == 1 && mounts_at(&pod.target())? == 1, "one mount each");
        storm(|pod, fs| Box::pin(async move { pod.unpublish(&fs).await })).await?;
        storm(|pod, fs| Box::pin(async move { pod.unstage(&fs).await })).await?;
        ensure!(!pod.target().exists() && mounts_at(&pod.staging())? == 0, "all is undone");
    }
    // Both ways at once: any of them may win, and what is asked last can always be had.
    pod.stage(&fs_id, writer()).await??;
    for _ in 0..10 {
        let (up, down) = futures::join!(pod.publish(&fs_id, writer(), false), pod.unpublish(&fs_id));
        for result in [up?, down?] {
            ensure!(result.as_ref().map_err(Status::code).err().is_none_or(|c| c == Code::Aborted), "{result:?}");
        }
    }
    pod.publish(&fs_id, writer(), false).await??;
    ensure!(mounts_at(&pod.target())? == 1, "one mount");
    pod.end(&fs_id).await?;
    ensure!(!pod.target().exists(), "it is undone");
    Ok(())
}

async fn killed(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Pod::new(&t, "n1", "p")?;
    pod.start(&fs_id).await?;
    let mut log = std::fs::File::create(pod.target().join("log"))?;
    let mut lines = 0_u32;
    let mut write = || -> Result<()> {
        lines += 1;
        std::io::Write::write_all(&mut log, format!("{lines}\n").as_bytes())?;
        Ok(log.sync_all()?)
    };
    let second = pod.dir.join("second");
    for round in 0..6 {
        write()?;
        // Killed at another moment of a publish or unpublish each time; what it answers doesn't matter.
        let call = async {
            if round % 2 == 0 { pod.publish_at(&fs_id, &second, writer(), true).await } else { pod.unpublish_at(&fs_id, &second).await }
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(round * 2)).await;
            t.rig.kill9("n1")
        };
        let (_, killed) = futures::join!(call, kill);
        killed?;
        write()?;
        ensure!(pod.unpublish(&fs_id).await.is_err(), "nobody can answer");
        t.rig.restart("n1").await?;
        eventually("the driver to answer again", STEP, || async { Ok(pod.publish(&fs_id, writer(), false).await??) }).await?;
        pod.stage(&fs_id, writer()).await??;
        pod.publish_at(&fs_id, &second, writer(), true).await??;
        ensure!(mounts_at(&second)? == 1 && mounts_at(&pod.target())? == 1, "one mount each");
        ensure!(std::fs::write(second.join("x"), "x").is_err(), "half a publish left it writable");
        write()?;
        if round % 2 == 0 {
            pod.unpublish_at(&fs_id, &second).await??;
        }
    }
    drop(log);
    let written = std::fs::read_to_string(pod.target().join("log"))?;
    ensure!(written.lines().eq((1..=lines).map(|n| n.to_string())), "the writer's lines must all be there");
    pod.unpublish_at(&fs_id, &second).await??;
    t.rig.kill9("n1")?;
    t.rig.restart("n1").await?;
    eventually("the driver to answer again", STEP, || pod.end(&fs_id)).await?;
    ensure!(!pod.target().exists() && mounts_at(&pod.staging())? == 0, "all is undone");
    Ok(())
}

async fn rmdir(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Pod::new(&t, "n1", "p")?;
    pod.start(&fs_id).await?;
    std::fs::write(pod.target().join("inside"), "inside")?;
    // Someone unmounts it behind our back, and something writes into the bare directory.
    rustix::mount::unmount(pod.target(), rustix::mount::UnmountFlags::empty())?;
    std::fs::create_dir(pod.target().join("sub"))?;
    std::fs::write(pod.target().join("sub/stray"), "stray")?;
    refused(pod.unpublish(&fs_id).await?, Code::FailedPrecondition, "left alone")?;
    ensure!(std::fs::read_to_string(pod.target().join("sub/stray"))? == "stray", "unpublish removed more than an empty directory");
    // Published over it, the volume shows; unpublished, the stray file is there still.
    pod.publish(&fs_id, writer(), false).await??;
    ensure!(std::fs::read_to_string(pod.target().join("inside"))? == "inside", "the volume must show");
    refused(pod.unpublish(&fs_id).await?, Code::FailedPrecondition, "left alone")?;
    ensure!(mounts_at(&pod.target())? == 0 && pod.target().join("sub/stray").exists(), "the mount goes, the file stays");
    std::fs::remove_dir_all(pod.target())?;
    pod.unpublish(&fs_id).await??;

    // Something else is mounted there: neither unmounted nor entered.
    std::fs::create_dir(pod.target())?;
    rustix::mount::mount("tmpfs", pod.target(), "tmpfs", rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>)?;
    std::fs::write(pod.target().join("foreign"), "foreign")?;
    refused(pod.unpublish(&fs_id).await?, Code::FailedPrecondition, "left alone")?;
    refused(pod.publish(&fs_id, writer(), false).await?, Code::AlreadyExists, "tmpfs")?;
    ensure!(std::fs::read_to_string(pod.target().join("foreign"))? == "foreign", "a foreign mount was touched");
    rustix::mount::unmount(pod.target(), rustix::mount::UnmountFlags::empty())?;
    pod.end(&fs_id).await?;

    // A link in the way is not followed.
    std::os::unix::fs::symlink(&t.dir, pod.target())?;
    refused(pod.unpublish(&fs_id).await?, Code::InvalidArgument, "no directory")?;
    pod.stage(&fs_id, writer()).await??;
    refused(pod.publish(&fs_id, writer(), false).await?, Code::InvalidArgument, "no directory")?;
    std::fs::remove_file(pod.target())?;
    pod.start(&fs_id).await?;
    ensure!(std::fs::read_to_string(pod.target().join("inside"))? == "inside", "the volume's own files must all be there");
    pod.end(&fs_id).await
}

async fn published(t: Arc<Test>) -> Result<()> {
    let fs_id = t.dot("d", "n1").await?;
    let pod = Pod::new(&t, "n1", "p")?;
    pod.start(&fs_id).await?;
    t.kube().delete("Dot", &t.namespace, "d").await?;
    eventually("a condition that names the path", STEP, || async {
        let dot = t.object("Dot", "d").await?;
        let said = dot.pointer("/status/conditions").map(Value::to_string).unwrap_or_default();
        ensure!(said.contains(&text(&pod.dir)), "{said}");
        Ok(())
    })
    .await?;
    std::fs::write(pod.target().join("a"), "still mine")?;
    throughout("the deletion while the volume is published", Duration::from_secs(2), || async {
        ensure!(std::fs::read_to_string(pod.target().join("a"))? == "still mine", "the volume was taken from the pod");
        Ok(())
    })
    .await?;
    refused(pod.publish_at(&fs_id, &pod.dir.join("new"), writer(), false).await?, Code::FailedPrecondition, "being deleted")?;
    pod.end(&fs_id).await?;
    t.kube().gone("Dot", &t.namespace, "d", STEP).await?;
    nothing_left(&t, &fs_id).await
}
