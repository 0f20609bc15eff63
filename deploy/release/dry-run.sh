#!/usr/bin/env bash
# Makes everything of a release that one machine can make, looks at it, and says by name what it can't prove.
#
#   deploy/release/dry-run.sh OUT          make release-dry-run
#
# Root (images are tried by chroot), Debian's packages by apt-get, helm (else that part is skipped, by name).
# Environment: CARGO_TARGET_DIR, DOTGRAFT_BIN_DIR (programs that are built already), DOTGRAFT_TOOLS_DIR, HELM.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
OUT=$(mkdir -p "${1:?usage: dry-run.sh OUT}" && readlink -f "$1")
TOOLS=${DOTGRAFT_TOOLS_DIR:-${DOTGRAFT_CACHE:-$HOME/.cache/dotgraft}/bin}
HELM=${HELM:-$(command -v helm || echo "$TOOLS/helm")}
passed=0 failed=0 skipped=0

say()  { printf '  release: %s\n' "$*"; }
skip() { skipped=$((skipped + 1)); say "skipped: $*"; }
# proves SENTENCE COMMAND...
proves() {
  local what=$1
  shift
  if "$@"; then passed=$((passed + 1)); say "$what"; else failed=$((failed + 1)); say "FAILED: $what"; fi
}

# Every action is named by commit, and every script of ours that a workflow calls is there.
workflows() {
  local loose file bad=0
  loose=$(grep -nE '^ *(- )?uses: ' .github/workflows/*.yml | grep -vE '@[0-9a-f]{40} # v' || true)
  [ -z "$loose" ] || { echo "$loose" >&2; bad=1; }
  for file in $(grep -ohE '(deploy|charts|e2e|\.ci)/[a-z/-]+(\.sh|/run|run)\b' .github/workflows/*.yml | sort -u); do
    [ -x "$file" ] || { echo "a workflow calls $file, which is not there" >&2; bad=1; }
  done
  return $bad
}

# sbom FILE CRATE: valid, names the program first, and every relationship points to what is listed.
sbom() {
  jq -e --arg crate "$2" --arg version "$VERSION" '
    ([.packages[].SPDXID] + ["SPDXRef-DOCUMENT"]) as $ids
    | .spdxVersion == "SPDX-2.3"
      and .packages[0].name == $crate and .packages[0].versionInfo == $version
      and (.packages | length) > 50
      and ([.packages[].SPDXID] | length == (unique | length))
      and all(.relationships[]; (.spdxElementId | IN($ids[])) and (.relatedSpdxElement | IN($ids[])))' "$1" >/dev/null
}

# image NAME: the archive says what the chart asks for.
image() {
  tar -xOf "$OUT/$1.tar" ./manifest.json | jq -e --arg ref "ghcr.io/dotgraft/dotgraft-$1:$VERSION" '.[0].RepoTags | index($ref) != null' >/dev/null
}

same_bytes() {
  local again=$OUT/.again
  mkdir -p "$again"
  deploy/image/build.sh "$again" operator 2>/dev/null && cmp -s "$OUT/operator.tar" "$again/operator.tar"
  local status=$?
  rm -rf "$again"
  return $status
}

chart() {
  "$HELM" package charts/dotgraft --destination "$OUT" >/dev/null 2>&1 || return 1
  "$HELM" show chart "$OUT/dotgraft-$VERSION.tgz" 2>/dev/null | grep -qx "appVersion: $VERSION"
}

# The packed chart, rendered, starts the images that were made, by name and tag.
chart_images() {
  local want have
  want=$(printf 'ghcr.io/dotgraft/dotgraft-%s:%s\n' agent "$VERSION" operator "$VERSION")
  have=$("$HELM" template r "$OUT/dotgraft-$VERSION.tgz" --set pool.file.size=1Gi 2>/dev/null | grep -ohE 'ghcr.io/dotgraft/dotgraft-(agent|operator):[^" ]+' | sort -u)
  [ "$want" = "$have" ] || { echo "wanted: $want; the chart has: $have" >&2; return 1; }
}

# What the manifest says of this machine's archive is so, and what is in it runs.
krew() {
  local manifest=$OUT/dot.yaml sum dir=$OUT/.krew status
  deploy/release/krew.sh "$OUT" >"$manifest" || return 1
  sum=$(sed -n 's/^ *sha256: //p' "$manifest")
  echo "$sum  $ARCHIVE" | sha256sum --check --status || return 1
  grep -q "/v$VERSION/${ARCHIVE##*/}$" "$manifest" || return 1
  mkdir -p "$dir" && tar -xzf "$ARCHIVE" -C "$dir" && [ "$("$dir/kubectl-dot" --version)" = "kubectl-dot $VERSION" ]
  status=$?
  rm -rf "$dir"
  return $status
}

# By the name kubectl gives a plugin.
as_plugin() {
  local dir=$OUT/.plugin status
  mkdir -p "$dir" && tar -xzf "$ARCHIVE" -C "$dir"
  [ "$(PATH=$dir:$PATH "$TOOLS/kubectl" dot --version)" = "kubectl-dot $VERSION" ]
  status=$?
  rm -rf "$dir"
  return $status
}

VERSION=$(deploy/release/versions.sh) || exit 1
say "version $VERSION, into $OUT"
passed=1
grep -qE "^## \[(Unreleased|$VERSION)\]" CHANGELOG.md && say "the changelog has a section for it"
proves "workflows name actions by commit, and call only what is there" workflows

if [ -z "${DOTGRAFT_BIN_DIR:-}" ]; then
  cargo build --locked --release -p dotgraft-operator -p dotgraft-agent -p kubectl-dot || exit 1
  DOTGRAFT_BIN_DIR=${CARGO_TARGET_DIR:-target}/release
fi
export DOTGRAFT_BIN_DIR
case $(uname -m) in x86_64) ARCH=amd64 ;; aarch64) ARCH=arm64 ;; *) ARCH=$(uname -m) ;; esac

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  if deploy/image/build.sh "$OUT" operator agent; then
    for name in operator agent; do
      proves "$name.tar is the image that the chart asks for" image $name
      proves "$name.spdx.json is a whole bill of materials" sbom "$OUT/$name.spdx.json" dotgraft-$name
    done
    proves "the operator's image has the same bytes when it is made again" same_bytes
  else
    failed=$((failed + 1)); say "FAILED: images"
  fi
else
  skip "images: they need root and apt-get"
fi

if [ -x "$HELM" ]; then
  proves "dotgraft-$VERSION.tgz is the chart of this version" chart
  proves "the chart starts those images" chart_images
else
  skip "the chart: helm is missing (e2e/tools.sh $TOOLS helm builds it)"
fi

ARCHIVE=$(deploy/release/plugin.sh "$OUT" linux "$ARCH" "$DOTGRAFT_BIN_DIR/kubectl-dot") || exit 1
proves "krew's manifest has the archive's digest, and what is in it runs" krew
if [ -x "$TOOLS/kubectl" ]; then proves "kubectl finds it as a plugin" as_plugin; else skip "kubectl dot: there is no kubectl in $TOOLS"; fi
deploy/image/sbom.sh kubectl-dot >"$OUT/kubectl-dot.spdx.json"
proves "kubectl-dot.spdx.json is a whole bill of materials" sbom "$OUT/kubectl-dot.spdx.json" kubectl-dot
(cd "$OUT" && find . -maxdepth 1 -type f -not -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)

skip "the other architecture, and kubectl-dot for macOS and as a static program: runners of those kinds"
skip "the Dockerfiles: no Docker is used here; the images above are made from the same programs without it"
skip "signatures: they need the release workflow's identity"
skip "pushes of images and chart, the release page, krew's index: they need their registries"
say "$passed proven, $failed failed, $skipped not to be proven here"
[ "$failed" = 0 ]
