#!/usr/bin/env bash
# Builds what the rig runs and Debian doesn't have: from Go modules Kubernetes, etcd, Helm, the CSI sidecars and
# csi-sanity; and the images its pods start from.
#
#   e2e/tools.sh OUTDIR [WHAT...]              builds what of it is missing in OUTDIR
#   e2e/tools.sh OUTDIR --missing [WHAT...]    only lists what is missing
#
# WHAT is a program's name, or what somebody wants to do:
#   demo           a control plane: etcd, kube-apiserver, kube-controller-manager, kubectl
#   pods           that, and what nodes with pods need: scheduler, kubelet, CSI sidecars, Helm, two images
#   test           that, csi-sanity and a PostgreSQL image; without WHAT it is this
#   storage-e2e    pods, and Kubernetes' own storage tests (storage-e2e, ginkgo, agnhost, two images)
#
# Each program is built once per version and kept in OUTDIR; a second run does nothing. Go's build cache goes to
# scratch and is removed (it grows to gigabytes), the results stay (about 700 MB).
set -euo pipefail
cd "$(dirname "$0")"
HERE=$PWD

K8S=${DOTGRAFT_K8S_VERSION:-1.36.1}
STAGING=0.${K8S#1.}
# Of k8s.io/kubernetes, version K8S.
PROGRAMS=(kube-apiserver kube-controller-manager kubectl kube-scheduler kubelet)
# name module package version; external-provisioner 6.4 needs a module that can't be had.
MODULES=(
  "etcd go.etcd.io/etcd/server/v3 . ${DOTGRAFT_ETCD_VERSION:-v3.7.3}"
  "csi-provisioner github.com/kubernetes-csi/external-provisioner/v6 cmd/csi-provisioner v6.3.0"
  "csi-attacher github.com/kubernetes-csi/external-attacher/v4 cmd/csi-attacher v4.13.0"
  "csi-resizer github.com/kubernetes-csi/external-resizer/v2 cmd/csi-resizer v2.3.0"
  "csi-snapshotter github.com/kubernetes-csi/external-snapshotter/v8 cmd/csi-snapshotter v8.7.0"
  "snapshot-controller github.com/kubernetes-csi/external-snapshotter/v8 cmd/snapshot-controller v8.7.0"
  "csi-sanity github.com/kubernetes-csi/csi-test/v5 cmd/csi-sanity v5.6.0"
  "helm helm.sh/helm/v4 cmd/helm v4.3.1"
)
SNAPSHOT_CRDS=v8.7.0 # of external-snapshotter's client module
IMAGES=1             # the version of pause.c and of the images below
SUITE_IMAGES=$K8S-2  # of the images that the storage tests ask for, under the names that they ask for
POSTGRES=15-1        # of the PostgreSQL image: Debian's major version, and that of deploy/image/postgres.sh

say() { printf '  tools: %s\n' "$*" >&2; }

# The names that WHAT stands for.
names_of() {
  case $1 in
    demo) echo etcd kube-apiserver kube-controller-manager kubectl ;;
    pods) names_of demo; echo kube-scheduler kubelet csi-provisioner csi-attacher csi-resizer csi-snapshotter snapshot-controller \
      snapshot-crds image-pause image-busybox helm ;;
    test) names_of pods; echo csi-sanity image-postgres ;;
    storage-e2e) names_of pods; echo storage-e2e ginkgo agnhost image-agnhost image-e2e-busybox ;;
    *) echo "$1" ;;
  esac
}

# The version of a name; fails where there is no such thing.
version_of() {
  local p name version
  case $1 in
    snapshot-crds) echo "$SNAPSHOT_CRDS"; return ;;
    image-pause|image-busybox) echo $IMAGES; return ;;
    image-postgres) echo $POSTGRES; return ;;
    image-agnhost|image-e2e-busybox) echo "$SUITE_IMAGES"; return ;;
    storage-e2e|ginkgo|agnhost) echo "$K8S"; return ;;
  esac
  for p in "${PROGRAMS[@]}"; do [ "$p" != "$1" ] || { echo "$K8S"; return; }; done
  for p in "${MODULES[@]}"; do read -r name _ _ version <<<"$p"; [ "$name" != "$1" ] || { echo "$version"; return; }; done
  echo "tools: there is no $1" >&2
  return 1
}

# All that is wanted, a line each: name and version.
wanted() {
  local what name version
  for what in "${WHAT[@]}"; do
    for name in $(names_of "$what"); do
      version=$(version_of "$name") || return 1
      echo "$name $version"
    done
  done
}
missing() { wanted | while read -r name version; do [ -e "$OUT/$name-$version" ] || echo "$name"; done; }
link() { wanted | while read -r name version; do ln -sfn "$name-$version" "$OUT/$name"; done; }

# keep NAME VERSION: what was built as .NAME.new is whole now.
keep() { rm -rf "${OUT:?}/$1-$2"; mv "$OUT/.$1.new" "$OUT/$1-$2"; say "$1 is there ($SECONDS s since the start)"; }

# go_mod NAME: an empty module to build in.
go_mod() { mkdir -p "$SCRATCH/$1" && cd "$SCRATCH/$1" && go mod init "rig/$1" 2>/dev/null; }

# quiet COMMAND...: its output only if it fails.
quiet() { "$@" >"$SCRATCH/log" 2>&1 || { cat "$SCRATCH/log" >&2; exit 1; }; }

# The directory of a downloaded module.
module_dir() { go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'; }

# k8s.io/kubernetes names its staging modules v0.0.0: each is pinned by a replace.
kubernetes_mod() {
  local dir m
  go_mod k8s
  dir=$(module_dir "k8s.io/kubernetes@v$K8S")
  go mod edit -go="$(sed -n 's/^go //p' "$dir/go.mod")" -require="k8s.io/kubernetes@v$K8S"
  for m in $(grep -E '=> \./staging' "$dir/go.mod" | awk '{print $1}'); do
    go mod edit -replace="$m=$m@v$STAGING"
  done
}

# No `go mod tidy`: it would fetch what only the tests of all modules need. Together, so that one links while others compile.
kubernetes() {
  local p base=k8s.io/component-base/version
  kubernetes_mod
  say "building $*"
  mkdir "$SCRATCH/k8s-bin"
  go build -ldflags "-s -w -X $base.gitVersion=v$K8S -X $base.gitMajor=1 -X $base.gitMinor=$(cut -d. -f2 <<<"$K8S")" \
    -o "$SCRATCH/k8s-bin/" "${@/#/k8s.io/kubernetes/cmd/}"
  for p in "$@"; do
    mv "$SCRATCH/k8s-bin/$p" "$OUT/.$p.new"
    keep "$p" "$K8S"
  done
}

# The tests, what runs them on several processes, and the program of most of their pods; each of the version Kubernetes asks for.
storage_e2e() {
  kubernetes_mod
  printf '//go:build tools\npackage tools\nimport (\n _ "github.com/onsi/ginkgo/v2/ginkgo"\n _ "k8s.io/kubernetes/test/images/agnhost"\n)\n' > tools.go
  mkdir storage && cp "$HERE/storage/main_test.go" storage/
  quiet go mod tidy
  say "building storage-e2e"
  go test -ldflags "-s -w" -c -o "$OUT/.storage-e2e.new" ./storage
  go build -ldflags "-s -w" -o "$OUT/.ginkgo.new" github.com/onsi/ginkgo/v2/ginkgo
  go build -ldflags "-s -w" -o "$OUT/.agnhost.new" k8s.io/kubernetes/test/images/agnhost
  keep storage-e2e "$K8S" && keep ginkgo "$K8S" && keep agnhost "$K8S"
}

# from_module NAME MODULE PACKAGE VERSION
from_module() {
  go_mod "$1"
  quiet go get -tool "$2/$3@$4"
  say "building $1"
  go build -ldflags "-s -w" -o "$OUT/.$1.new" "$2/$3"
  keep "$1" "$4"
}

snapshot_crds() {
  local dir
  go_mod crds
  dir=$(module_dir "github.com/kubernetes-csi/external-snapshotter/client/v8@$SNAPSHOT_CRDS")
  mkdir -p "$OUT/.snapshot-crds.new"
  install -m 644 "$dir"/config/crd/*snapshot.storage.k8s.io_*.yaml "$OUT/.snapshot-crds.new/"
  keep snapshot-crds "$SNAPSHOT_CRDS"
}

# Images are made of static programs: pause of ours, busybox of Debian's package busybox-static.
image_pause() {
  mkdir -p "$SCRATCH/pause"
  cc -Os -static -o "$SCRATCH/pause/pause" pause.c
  ./image.sh "$OUT/.image-pause.new" dotgraft.test/pause:1 '["/pause"]' '[]' "$SCRATCH/pause"
  keep image-pause $IMAGES
}

image_busybox() {
  local root=$SCRATCH/busybox
  mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,var} && mkdir -m 1777 "$root/tmp"
  install -m 755 "$(command -v busybox)" "$root/bin/busybox"
  busybox --list | grep -vx busybox | while read -r applet; do ln -s busybox "$root/bin/$applet"; done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
  ./image.sh "$OUT/.image-busybox.new" docker.io/library/busybox:1,docker.io/library/busybox:latest '[]' '["sh"]' "$root"
  keep image-busybox $IMAGES
}

# PostgreSQL of Debian's packages, 130 MB.
image_postgres() {
  ../deploy/image/build.sh "$SCRATCH/images" postgres
  mv "$SCRATCH/images/postgres.tar" "$OUT/.image-postgres.new"
  keep image-postgres $POSTGRES
}

# bare_root DIR: a root with busybox and all its applets.
bare_root() {
  mkdir -p "$1"/{bin,dev,etc,home,proc,root,sys,usr/bin,usr/sbin,sbin,var,mnt} && mkdir -m 1777 "$1/tmp"
  install -m 755 "$(command -v busybox)" "$1/bin/busybox"
  busybox --list | grep -vx busybox | while read -r applet; do ln -s busybox "$1/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$1/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}

# The suite's agnhost is this program in an Alpine; the others are run for their shell only.
image_agnhost() {
  local names=registry.k8s.io/e2e-test-images
  bare_root "$SCRATCH/agnhost-root"
  install -m 755 "$OUT/agnhost-$K8S" "$SCRATCH/agnhost-root/agnhost"
  ./image.sh "$OUT/.image-agnhost.new" $names/agnhost:2.63.0 '["/agnhost"]' '["pause"]' "$SCRATCH/agnhost-root"
  keep image-agnhost "$SUITE_IMAGES"
}

image_e2e_busybox() {
  local names=registry.k8s.io/e2e-test-images
  bare_root "$SCRATCH/e2e-busybox-root"
  ./image.sh "$OUT/.image-e2e-busybox.new" $names/busybox:1.37.0-1,$names/nginx:1.15-4,$names/nginx:1.27-0,$names/glibc-dns-testing:2.0.0 '[]' '["sh"]' "$SCRATCH/e2e-busybox-root"
  keep image-e2e-busybox "$SUITE_IMAGES"
}

build() {
  local wants=" $* " p k8s=()
  case $wants in *" image-pause "*) image_pause ;; esac
  case $wants in *" image-busybox "*) image_busybox ;; esac
  case $wants in *" image-postgres "*) image_postgres ;; esac
  case $wants in *" snapshot-crds "*) (snapshot_crds) ;; esac
  for p in "${PROGRAMS[@]}"; do case $wants in *" $p "*) k8s+=("$p") ;; esac; done
  [ ${#k8s[@]} = 0 ] || (kubernetes "${k8s[@]}")
  case $wants in *" storage-e2e "* | *" ginkgo "* | *" agnhost "*) (storage_e2e) ;; esac
  case $wants in *" image-agnhost "*) image_agnhost ;; esac
  case $wants in *" image-e2e-busybox "*) image_e2e_busybox ;; esac
  for p in "${MODULES[@]}"; do
    # shellcheck disable=SC2086 # four words
    case $wants in *" ${p%% *} "*) (from_module $p) ;; esac
  done
}

OUT=$(mkdir -p "$1" && readlink -f "$1")
shift
only_list=no
[ "${1:-}" != --missing ] || { only_list=yes; shift; }
WHAT=("${@:-test}")
wanted >/dev/null
if [ $only_list = yes ]; then missing; exit; fi
todo=$(missing | tr '\n' ' ')
if [ -z "$todo" ]; then link; exit 0; fi
command -v go >/dev/null || { echo "tools: Go >= 1.26 is needed to build $todo" >&2; exit 1; }
SCRATCH=$(mktemp -d)
export GOCACHE=$SCRATCH/cache GOFLAGS=-mod=mod CGO_ENABLED=0
trap 'chmod -R u+w "$SCRATCH" 2>/dev/null; rm -rf "$SCRATCH" "$OUT"/.*.new' EXIT
say "building ${todo}(once, about two minutes each on two cores)"
# shellcheck disable=SC2086 # a list of words
build $todo
link
