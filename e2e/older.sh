#!/usr/bin/env bash
# Agent and operator of the release before, for tests of upgrades: built once from the commit that e2e/older names, into the cache.
# Prints their directory, which DOTGRAFT_OLD_BIN_DIR is to name.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(<e2e/older)
cache=${DOTGRAFT_CACHE:-$HOME/.cache/dotgraft}/older/$commit

if [ ! -x "$cache/bin/dotgraft-agent" ] || [ ! -x "$cache/bin/dotgraft-operator" ]; then
  git cat-file -e "$commit^{commit}" 2>/dev/null ||
    { printf 'error: commit %s is not in this clone: git fetch --unshallow\n' "$commit" >&2; exit 1; }
  mkdir -p "$cache"
  source=$cache/source
  git worktree remove --force "$source" >/dev/null 2>&1 || true
  git worktree add --quiet --detach "$source" "$commit" >&2
  trap 'git worktree remove --force "$source" >/dev/null 2>&1 || true' EXIT
  (cd "$source" && CARGO_TARGET_DIR=$cache/target cargo build --locked --quiet -p dotgraft-agent -p dotgraft-operator) >&2
  mkdir -p "$cache/bin"
  for program in dotgraft-agent dotgraft-operator; do cp "$cache/target/debug/$program" "$cache/bin/$program"; done
  rm -rf "$cache/target"
fi
printf '%s\n' "$cache/bin"
