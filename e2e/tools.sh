#!/usr/bin/env bash
# Builds the control plane the rig runs (etcd, kube-apiserver, kube-controller-manager, kubectl) from Go modules.
#
#   e2e/tools.sh OUTDIR
#
# Each program is built once per version and kept in OUTDIR; a second run does nothing. Go's build cache goes to
# scratch and is removed (it grows to gigabytes), the results stay (about 300 MB).
set -euo pipefail

K8S=${DOTGRAFT_K8S_VERSION:-1.36.1}
ETCD=${DOTGRAFT_ETCD_VERSION:-v3.7.3}
OUT=$(mkdir -p "$1" && readlink -f "$1")
STAGING=0.${K8S#1.}
PROGRAMS=(kube-apiserver kube-controller-manager kubectl)

say() { printf '  tools: %s\n' "$*" >&2; }

missing=()
for p in "${PROGRAMS[@]}"; do [ -x "$OUT/$p-$K8S" ] || missing+=("$p"); done
[ -x "$OUT/etcd-$ETCD" ] || missing+=(etcd)
link() {
  for p in "${PROGRAMS[@]}"; do ln -sfn "$p-$K8S" "$OUT/$p"; done
  ln -sfn "etcd-$ETCD" "$OUT/etcd"
}
if [ ${#missing[@]} = 0 ]; then link; exit 0; fi

command -v go >/dev/null || { echo "tools: Go >= 1.26 is needed to build ${missing[*]}" >&2; exit 1; }
SCRATCH=$(mktemp -d)
export GOCACHE=$SCRATCH/cache GOFLAGS=-mod=mod CGO_ENABLED=0
trap 'chmod -R u+w "$SCRATCH" 2>/dev/null; rm -rf "$SCRATCH"' EXIT
say "building ${missing[*]} (Kubernetes $K8S, etcd $ETCD); once, about six minutes on two cores"

# k8s.io/kubernetes names its staging modules v0.0.0: each is pinned by a replace.
kubernetes() {
  local dir m p want=("$@")
  mkdir -p "$SCRATCH/k8s" && cd "$SCRATCH/k8s"
  go mod init rig/tools 2>/dev/null
  dir=$(go mod download -json "k8s.io/kubernetes@v$K8S" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  go mod edit -go="$(sed -n 's/^go //p' "$dir/go.mod")" -require="k8s.io/kubernetes@v$K8S"
  for m in $(grep -E '=> \./staging' "$dir/go.mod" | awk '{print $1}'); do
    go mod edit -replace="$m=$m@v$STAGING"
  done
  { printf '//go:build tools\npackage tools\nimport (\n'
    for p in "${PROGRAMS[@]}"; do printf ' _ "k8s.io/kubernetes/cmd/%s"\n' "$p"; done
    echo ')'; } > tools.go
  go mod tidy 2>"$SCRATCH/tidy.log" || { cat "$SCRATCH/tidy.log" >&2; exit 1; }
  local base=k8s.io/component-base/version
  for p in "${want[@]}"; do
    say "building $p"
    go build -ldflags "-s -w -X $base.gitVersion=v$K8S -X $base.gitMajor=1 -X $base.gitMinor=$(cut -d. -f2 <<<"$K8S")" \
      -o "$OUT/.$p.new" "k8s.io/kubernetes/cmd/$p"
    mv "$OUT/.$p.new" "$OUT/$p-$K8S"
  done
}

etcd() {
  mkdir -p "$SCRATCH/etcd" && cd "$SCRATCH/etcd"
  go mod init rig/etcd 2>/dev/null
  go get -tool "go.etcd.io/etcd/server/v3@$ETCD" 2>"$SCRATCH/get.log" || { cat "$SCRATCH/get.log" >&2; exit 1; }
  say "building etcd"
  go build -ldflags "-s -w" -o "$OUT/.etcd.new" go.etcd.io/etcd/server/v3
  mv "$OUT/.etcd.new" "$OUT/etcd-$ETCD"
}

k8s=()
for p in "${missing[@]}"; do [ "$p" = etcd ] || k8s+=("$p"); done
if [ ${#k8s[@]} -gt 0 ]; then (kubernetes "${k8s[@]}"); fi
case " ${missing[*]} " in *" etcd "*) (etcd);; esac
link
