//! The seccomp profile that we ship, as a kubelet gives it to a pod: no ioctl of btrfs but cloning, no opening by handle, and all else as usual.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::harness::test::STEP;
use crate::harness::{Case, Test};
use crate::rig::source_root;
use crate::steps::pod::{claim, started};

/// The case.
pub fn case() -> Case {
    let title = "with the seccomp profile of deploy/ a pod makes no subvolume and opens nothing by handle, and clones files as before";
    Case::new("pods-seccomp", title, confined).kubelets()
}

const PROFILE: &str = "dotgraft-volumes.json";

/// With the node's own perl, which can call anything: to make a subvolume, the same with a number that is only the same to the kernel, to set a
/// received UUID, to open by handle (the descriptor is no good, so whoever may is told `Bad file descriptor`). Then what has to work.
const TRY: &str = r#"
use strict; use warnings;
sysopen(my $dir, "/data", 0) or die "open: $!";
sub report { my ($what, $done) = @_; print "$what: ", ($done ? "done" : "$!"), "\n"; }
my $name = shift @ARGV;
report("subvolume", ioctl($dir, 0x5000940e, my $a = pack("q a4088", 0, "a-$name")));
report("again", syscall(16, fileno($dir), (1 << 32) | 0x5000940e, my $b = pack("q a4088", 0, "b-$name")) == 0);
report("snapshot", ioctl($dir, 0x50009417, my $c = pack("q Q Q q4 a4040", fileno($dir), 0, 0, 0, 0, 0, 0, "c-$name")));
report("received", ioctl($dir, 0xc0c89425, my $d = "\0" x 200));
report("handle", syscall(304, -1, my $h = pack("I i a128", 8, 1, ""), 0) >= 0);
system("/usr/bin/dd", "if=/dev/zero", "of=/data/f-$name", "bs=1M", "count=1", "status=none") == 0 or die "dd";
report("clone", system("/usr/bin/cp", "--reflink=always", "/data/f-$name", "/data/g-$name") == 0);
report("sockets", socket(my $s, 2, 1, 0));
"#;

/// A pod with the volume that runs the script once and stays.
async fn run(t: &Test, name: &str, profile: &str) -> Result<String> {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: n1}}\n  terminationGracePeriodSeconds: 1\n  \
         securityContext: {{seccompProfile: {profile}}}\n  containers:\n  - name: c\n    image: busybox:1\n    \
         imagePullPolicy: Never\n    command: [sleep, '1000']\n    securityContext: {{capabilities: {{add: [DAC_READ_SEARCH]}}}}\n    \
         volumeMounts:\n    - {{name: data, mountPath: /data}}\n    - {{name: usr, mountPath: /usr, readOnly: true}}\n    \
         - {{name: lib, mountPath: /lib, readOnly: true}}\n    - {{name: lib64, mountPath: /lib64, readOnly: true}}\n  volumes:\n  \
         - {{name: data, persistentVolumeClaim: {{claimName: data}}}}\n  - {{name: usr, hostPath: {{path: /usr}}}}\n  \
         - {{name: lib, hostPath: {{path: /usr/lib}}}}\n  - {{name: lib64, hostPath: {{path: /usr/lib64}}}}\n"
    );
    t.apply(&yaml).await?;
    started(t, name).await?;
    t.kubectl(&["exec", name, "--", "/usr/bin/perl", "-e", TRY, name]).await
}

async fn confined(t: Arc<Test>) -> Result<()> {
    let dir = t.rig.machine("n1")?.outside(Path::new("/var/lib/kubelet/seccomp"))?;
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(source_root().join("deploy/seccomp").join(PROFILE), dir.join(PROFILE))?;
    claim(&t, "data").await?;
    let usual = run(&t, "usual", "{type: RuntimeDefault}").await?;
    for done in ["subvolume: done", "again: done", "snapshot: done", "received: done", "handle: Bad file descriptor", "clone: done"] {
        ensure!(usual.contains(done), "the tries are no good: {usual}");
    }
    let confined = run(&t, "confined", &format!("{{type: Localhost, localhostProfile: {PROFILE}}}")).await?;
    for what in ["subvolume", "again", "snapshot", "received", "handle"] {
        ensure!(confined.contains(&format!("{what}: Operation not permitted")), "{confined}");
    }
    for what in ["clone", "sockets"] {
        ensure!(confined.contains(&format!("{what}: done")), "{confined}");
    }
    t.kubectl(&["delete", "pod", "usual", "confined", "--now"]).await?;
    t.kubectl(&["delete", "pvc", "data", "--timeout=180s"]).await?;
    t.kube().gone("Dot", &t.namespace, "data", STEP).await
}
