#!/usr/bin/env bash
# Says whether every place that names the version names the same one, and prints it.
#
#   deploy/release/versions.sh             between releases
#   deploy/release/versions.sh v1.2.3      for that tag: it is the version, and the changelog has it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bad=0
wrong() { printf 'version: %s\n' "$*" >&2; bad=1; }

version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] || wrong "Cargo.toml has no semantic version: '$version'"

for crate in $(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",'); do
  grep -q '^version.workspace = true' "$crate/Cargo.toml" || wrong "$crate/Cargo.toml has a version of its own"
  # The build of an image sends only what is named there: a crate inside of another goes along with that.
  for ignore in deploy/image/*.dockerignore; do grep -qx "!${crate%%/*}" "$ignore" || wrong "$ignore leaves out $crate"; done
done
for key in version appVersion; do
  have=$(sed -n "s/^$key: //p" charts/dotgraft/Chart.yaml | tr -d '"')
  [ "$have" = "$version" ] || wrong "charts/dotgraft/Chart.yaml: $key is $have, Cargo.toml has $version"
done
# deploy/programs/ is rendered from the chart and names the images.
for image in dotgraft-operator dotgraft-agent; do
  have=$(grep -ohE "$image:[^\" ]+" deploy/programs/*.yaml | sort -u | paste -sd' ')
  [ "$have" = "$image:$version" ] || wrong "deploy/programs/ has '$have', wanted $image:$version (charts/render.sh)"
done

if [ -n "${1:-}" ]; then
  [ "$1" = "v$version" ] || wrong "the tag is $1, Cargo.toml has $version"
  grep -qF "## [$version]" CHANGELOG.md || wrong "CHANGELOG.md has no section [$version]"
fi
[ $bad = 0 ] || exit 1
echo "$version"
