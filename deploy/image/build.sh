#!/usr/bin/env bash
# Makes container images without Docker and without a registry: archives as `docker save` makes them, which containerd imports.
#
#   deploy/image/build.sh OUTDIR            all images below
#   deploy/image/build.sh OUTDIR NAME...    only these
#   deploy/image/build.sh --list            names and references
#
#   operator agent                                                                   ours, from DOTGRAFT_BIN_DIR
#   csi-provisioner csi-attacher csi-resizer csi-snapshotter snapshot-controller     from DOTGRAFT_TOOLS_DIR, under their official names
#   busybox postgres                                                                 for tests, from Debian packages
#
# Each OUTDIR/NAME.tar is reproducible from the same programs and packages; operator and agent get OUTDIR/NAME.spdx.json beside it.
# Environment: DOTGRAFT_BIN_DIR, DOTGRAFT_TOOLS_DIR, DOTGRAFT_CACHE (packages are kept there), DOTGRAFT_IMAGE_PREFIX, DOTGRAFT_IMAGE_TAG,
# SOURCE_DATE_EPOCH. Images for a registry and for other architectures are built by the Dockerfiles beside this script.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CACHE=${DOTGRAFT_CACHE:-$HOME/.cache/dotgraft}
BIN=${DOTGRAFT_BIN_DIR:-$CACHE/target/release}
TOOLS=${DOTGRAFT_TOOLS_DIR:-$CACHE/bin}
PREFIX=${DOTGRAFT_IMAGE_PREFIX:-ghcr.io/dotgraft}
TAG=${DOTGRAFT_IMAGE_TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -1)}
SIDECARS=(csi-provisioner csi-attacher csi-resizer csi-snapshotter snapshot-controller)
ALL=(operator agent "${SIDECARS[@]}" busybox postgres)
# What Debian's packages ask for and an image without dpkg, perl, debconf, LLVM and locales doesn't need.
NOT_NEEDED='^(adduser|cdebconf.*|debconf|dpkg|init-system-helpers|install-info|libc-l10n|locales.*|libdebian-installer.*|libelogind0|libllvm.*|libz3-4'
NOT_NEEDED+='|libnewt.*|libslang2|libtextwrap1|libtext-glob-perl|libnumber-compare-perl|libfile-find-rule-perl|libjson-perl|libperl.*|libgdbm.*|libdb5.*'
NOT_NEEDED+='|lsb-base|netbase|openssl|passwd|perl.*|postgresql(-client)?-common|readline-common|sensible-utils|ssl-cert|sysvinit-utils|tar|ucf|usr-is-merged|usrmerge)$'
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null || echo 0)}

say()  { printf '  image: %s\n' "$*" >&2; }
fail() { printf 'image: %s\n' "$*" >&2; exit 1; }

# The file of a Go program: what TOOLS/NAME links to (NAME-v1.2.3), else the newest of that name; its version.
tool() { readlink -e "$TOOLS/$1" || find "$TOOLS" -maxdepth 1 -name "$1-v*" | sort -V | tail -1; }
tool_version() { local file; file=$(tool "$1"); printf '%s' "${file##*"$1"-}"; }

# references NAME: the names under which an image is imported, a line each.
references() {
  case $1 in
    operator|agent) echo "$PREFIX/dotgraft-$1:$TAG" ;;
    busybox) printf 'docker.io/library/busybox:%s\n' latest 1 ;;
    postgres) echo "$PREFIX/test-postgres:15" ;;
    *) echo "registry.k8s.io/sig-storage/$1:$(tool_version "$1")" ;;
  esac
}

# --- a root file system ---------------------------------------------------------------------------------------------

# new_root: an empty one with the directories that every program expects, and merged /usr as Debian has it.
new_root() {
  ROOTFS=$SCRATCH/root
  rm -rf "$ROOTFS" && mkdir -p "$ROOTFS"/{etc,proc,sys,dev,run,var,root,usr/bin,usr/sbin,usr/lib,usr/lib64}
  install -d -m 1777 "$ROOTFS/tmp"
  local d
  for d in bin sbin lib lib64; do ln -s "usr/$d" "$ROOTFS/$d"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532::/:/bin/false\n' >"$ROOTFS/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\n' >"$ROOTFS/etc/group"
}

# packages NAME...: these and what they depend on, unpacked into ROOTFS without running their scripts; noted for the SBOM.
packages() {
  local p file url all
  mkdir -p "$CACHE/debs" && chmod 755 "$CACHE/debs"
  all=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
    sed -n 's/^\([a-z0-9][a-z0-9.+-]*\)$/\1/p' | sort -u | grep -vE "$NOT_NEEDED")
  [ -n "$all" ] || fail "apt knows none of: $* (apt-get update?)"
  # shellcheck disable=SC2086 # a list of words
  while read -r url file _; do
    [ -s "$CACHE/debs/$file" ] || (cd "$CACHE/debs" && apt-get download -q "$(debian_name "$file")" >/dev/null 2>"$SCRATCH/apt.log") ||
      { cat "$SCRATCH/apt.log" >&2; fail "could not download $file from $url"; }
    dpkg-deb --fsys-tarfile "$CACHE/debs/$file" | tar -x --keep-directory-symlink --no-same-owner -C "$ROOTFS"
    # shellcheck disable=SC2016 # dpkg expands them
    dpkg-deb -W --showformat='${Package} ${Version} ${Architecture} ${Homepage}\n' "$CACHE/debs/$file" >>"$SCRATCH/packages"
  done < <(apt-get download --print-uris $all | tr -d "'")
  for p in share/doc share/man share/info share/locale share/lintian share/bash-completion share/initramfs-tools lib/udev include; do
    rm -rf "${ROOTFS:?}/usr/$p"
  done
}

# name_version_arch.deb → name=version (a colon of the version stands as %3a in file names).
debian_name() { local v=${1#*_}; v=${v%_*}; printf '%s=%s' "${1%%_*}" "${v//%3a/:}"; }

# program FILE: one of our programs without its debugging sections, and the libraries that it loads.
program() {
  [ -x "$1" ] || fail "there is no $1: build it (cargo build --release) or set DOTGRAFT_BIN_DIR or DOTGRAFT_TOOLS_DIR"
  local to=$ROOTFS/$2 lib
  install -m 755 "$1" "$to"
  strip --strip-debug "$to" 2>/dev/null || true
  # A static program has no such line.
  { ldd "$1" 2>/dev/null || true; } | sed -nE 's|^[^/]*(/[^ ]+\.so[^ ]*).*|\1|p' | while read -r lib; do
    [ -e "$ROOTFS/$lib" ] || install -D -m 755 "$(readlink -f "$lib")" "$ROOTFS/$lib"
  done
}

# works COMMAND...: it starts in there, so no library is missing. Not where the kernel can't run it.
works() { chroot "$ROOTFS" "$@" >/dev/null 2>"$SCRATCH/works.log" || { cat "$SCRATCH/works.log" >&2; fail "$* does not start in the image"; }; }

busybox() {
  packages busybox-static
  local applet
  for applet in $("$ROOTFS/bin/busybox" --list); do
    [ -e "$ROOTFS/bin/$applet" ] || [ -e "$ROOTFS/sbin/$applet" ] || ln -s busybox "$ROOTFS/bin/$applet"
  done
}

# --- an archive -----------------------------------------------------------------------------------------------------

debian_arch() { case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac; }

# archive NAME USER ENTRYPOINT CMD: packs ROOTFS as one layer; ENTRYPOINT and CMD are JSON lists.
archive() {
  local name=$1 layer config refs dir=$SCRATCH/archive
  rm -rf "$dir" && mkdir -p "$dir"
  tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --pax-option=delete=atime,delete=ctime \
    -C "$ROOTFS" -cf "$dir/layer.tar" .
  layer=$(sha256sum "$dir/layer.tar" | cut -d' ' -f1)
  mkdir "$dir/$layer" && mv "$dir/layer.tar" "$dir/$layer/layer.tar"
  printf '{"architecture":"%s","os":"linux","created":"%s","config":{"User":"%s","Entrypoint":%s,"Cmd":%s,"Env":["PATH=%s"],"Labels":{"org.opencontainers.image.title":"%s"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"deploy/image/build.sh"}]}' \
    "$(debian_arch)" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)" "$2" "$3" "$4" \
    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$name" "$layer" >"$dir/config"
  config=$(sha256sum "$dir/config" | cut -d' ' -f1)
  mv "$dir/config" "$dir/$config.json"
  refs=$(references "$name" | sed 's/.*/"&"/' | paste -sd,)
  printf '[{"Config":"%s.json","RepoTags":[%s],"Layers":["%s/layer.tar"]}]' "$config" "$refs" "$layer" >"$dir/manifest.json"
  tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$dir" -cf "$OUT/.$name.tar" .
  mv "$OUT/.$name.tar" "$OUT/$name.tar"
  SIZE=$(($(stat -c %s "$dir/$layer/layer.tar") / 1000000))
  say "$name: $SIZE MB, $(references "$name" | head -1)"
}

# smaller_than MB NAME: the promise about our own images; a debug build may be larger.
smaller_than() {
  [ "$SIZE" -lt "$1" ] || case $BIN in *debug*) say "$2 is over its $1 MB, but this is a debug build" ;; *) fail "$2 has $SIZE MB; it must stay under $1" ;; esac
}

# --- the images -----------------------------------------------------------------------------------------------------

# Nothing but the program (a static one, or its libraries); not root; writes nowhere.
operator() {
  program "$BIN/dotgraft-operator" usr/bin/dotgraft-operator
  works /usr/bin/dotgraft-operator --version
  "$HERE/sbom.sh" dotgraft-operator "$SCRATCH/packages" >"$OUT/operator.spdx.json"
  archive operator 65532:65532 '["/usr/bin/dotgraft-operator"]' '[]'
  smaller_than 60 operator
}

# With btrfs-progs (the agent formats by mkfs.btrfs; people scrub and look) and a shell.
agent() {
  packages btrfs-progs
  busybox
  program "$BIN/dotgraft-agent" usr/bin/dotgraft-agent
  works /usr/bin/dotgraft-agent --version
  works mkfs.btrfs --version
  "$HERE/sbom.sh" dotgraft-agent "$SCRATCH/packages" >"$OUT/agent.spdx.json"
  archive agent 0:0 '["/usr/bin/dotgraft-agent"]' '[]'
  smaller_than 150 agent
}

sidecar() {
  local file
  file=$(tool "$1")
  program "${file:-$TOOLS/$1}" "$1"
  archive "$1" 65532:65532 "[\"/$1\"]" '[]'
}

# PostgreSQL for tests: as an ordinary user, data in PGDATA, whole or not at all.
postgres() {
  packages postgresql-15 postgresql-client-15 tzdata
  busybox
  install -m 755 "$HERE/postgres.sh" "$ROOTFS/usr/bin/postgres.sh"
  echo 'postgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/sh' >>"$ROOTFS/etc/passwd"
  echo 'postgres:x:999:' >>"$ROOTFS/etc/group"
  install -d -m 1777 "$ROOTFS/run/postgresql" "$ROOTFS/var/run/postgresql" "$ROOTFS/var/lib/postgresql"
  local p
  for p in "$ROOTFS"/usr/lib/postgresql/15/bin/*; do ln -sf "../lib/postgresql/15/bin/${p##*/}" "$ROOTFS/usr/bin/${p##*/}"; done
  works postgres --version
  works psql --version
  works pgbench --version
  archive postgres 999:999 '["/usr/bin/postgres.sh"]' '[]'
}

one() {
  new_root
  : >"$SCRATCH/packages"
  case $1 in
    operator|agent|postgres) "$1" ;;
    busybox) busybox; archive busybox 0:0 '[]' '["sh"]' ;;
    *) sidecar "$1" ;;
  esac
}

case ${1:-} in
  ''|-h|--help) sed -n '2,14p' "$0" | sed 's/^# \{0,1\}//'; exit 1 ;;
  --list) for name in "${ALL[@]}"; do printf '%s %s\n' "$name" "$(references "$name" | paste -sd' ')"; done; exit ;;
esac
OUT=$(mkdir -p "$1" && readlink -f "$1")
shift
[ $# -gt 0 ] || set -- "${ALL[@]}"
for name in "$@"; do [[ " ${ALL[*]} " == *" $name "* ]] || fail "there is no image $name; there are: ${ALL[*]}"; done
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
for name in "$@"; do one "$name"; done
