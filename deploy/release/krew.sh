#!/usr/bin/env bash
# Writes krew's manifest of kubectl-dot for the archives in DIR, to standard output. Their digests are taken from the files.
#
#   deploy/release/krew.sh DIR
set -euo pipefail
dir=$(readlink -f "${1:?usage: krew.sh DIR}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
version=$(deploy/release/versions.sh)
cat <<HEAD
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: dot
spec:
  version: v$version
  homepage: https://github.com/dotgraft/dotgraft
  shortDescription: Git for cluster volumes
  description: |
    Commits, branches, pushes, moves and resets Dots, the versioned volumes of
    Dotgraft, with the rights of whoever runs it. Needs Dotgraft in the cluster.
  platforms:
HEAD
found=no
for archive in "$dir/kubectl-dot_${version}_"*.tar.gz; do
  [ -e "$archive" ] || continue
  found=yes
  name=${archive##*/}
  platform=${name#"kubectl-dot_${version}_"} platform=${platform%.tar.gz}
  cat <<PLATFORM
    - selector:
        matchLabels:
          os: ${platform%_*}
          arch: ${platform#*_}
      uri: https://github.com/dotgraft/dotgraft/releases/download/v$version/$name
      sha256: $(sha256sum "$archive" | cut -d' ' -f1)
      bin: kubectl-dot
PLATFORM
done
[ $found = yes ] || { echo "krew: no archive of version $version in $dir" >&2; exit 1; }
