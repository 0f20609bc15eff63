#!/usr/bin/env bash
# Packs kubectl-dot for download: OUT/kubectl-dot_VERSION_OS_ARCH.tar.gz, the same bytes from the same program.
#
#   deploy/release/plugin.sh OUT OS ARCH PROGRAM      OS: linux, darwin; ARCH: amd64, arm64
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: plugin.sh OUT OS ARCH PROGRAM} os=$2 arch=$3 program=$4
version=$(deploy/release/versions.sh)
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
install -m 755 "$program" "$scratch/kubectl-dot"
install -m 644 LICENSE "$scratch/LICENSE"
# What GNU tar calls these options, the tar of macOS doesn't know: there gtar.
tar=$(command -v gtar || command -v tar)
"$tar" --sort=name --mtime="@$when" --owner=0 --group=0 --numeric-owner -C "$scratch" -cf - kubectl-dot LICENSE |
  gzip -n9 >"$out/kubectl-dot_${version}_${os}_${arch}.tar.gz"
echo "$out/kubectl-dot_${version}_${os}_${arch}.tar.gz"
