#!/usr/bin/env bash
# What the Makefile's targets do: say what is missing, install and build it, then test, demonstrate, measure or play.
#
#   e2e/make.sh check|test|demo|bench|measure|cluster|conformance|soak|mutants|release-dry-run|down
#
# Environment: DOTGRAFT_CACHE, CARGO_TARGET_DIR, DOTGRAFT_TOOLS_DIR (the Makefile sets them), KEEP, CASES, PROFILE, REPORT, MINUTES, FOCUS, SEED.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

CARGO_DENY=0.20.2
# Program and Debian package: to build, for a rig, for nodes that run pods, for the benchmarks, to watch a rig and test alerts.
TO_BUILD=(cc:gcc cmake:cmake)
RIG=(mkfs.btrfs:btrfs-progs unshare:util-linux setpriv:util-linux ip:iproute2)
PODS=(containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins nft:nftables busybox:busybox-static jq:jq openssl:openssl)
BENCH=(rsync:rsync)
WATCH=(prometheus:prometheus promtool:prometheus)
# What a rig runs of ours.
OURS=(-p dotgraft-operator -p dotgraft-agent -p kubectl-dot -p dotgraft-e2e)
passed=0 failed=0 skipped=0 failures=()

say()  { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; }

# --- what is needed -------------------------------------------------------------------------------------------------

# need_root COMMAND WHAT: WHAT as in `prepare`.
need_root() {
  [ "$(id -u)" = 0 ] && return
  say "This needs root: it makes namespaces, loop devices and btrfs mounts, and installs Debian packages that are missing."
  say "Needed: Rust (rustup reads rust-toolchain.toml), Go >= 1.26, and Debian packages:"
  say "  $(programs_of "$2" | sed 's/.*://' | sort -u | tr '\n' ' ')"
  say "Run it in a root shell, or: sudo --preserve-env=PATH,HOME make $1"
  exit 1
}

# programs_of WHAT: demo (a control plane and agents), bench (that, and what is compared), pods (nodes that run pods), test (all).
programs_of() {
  printf '%s\n' "${TO_BUILD[@]}" "${RIG[@]}"
  case $1 in
    demo) ;;
    bench) printf '%s\n' "${BENCH[@]}" ;;
    pods|storage-e2e) printf '%s\n' "${PODS[@]}" ;;
    *) printf '%s\n' "${PODS[@]}" "${BENCH[@]}" "${WATCH[@]}" ;;
  esac
}

# missing_packages WHAT
missing_packages() {
  local entry
  for entry in $(programs_of "$1"); do
    PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || say "${entry##*:}"
  done | sort -u
}

deny_version() { "$DOTGRAFT_TOOLS_DIR/cargo-deny" --version 2>/dev/null | awk '{print $2}'; }

# prepare WHAT [deny]: says everything that is missing, installs packages, and begins to build the tools; `build` waits for them.
prepare() {
  local packages tools deny='' what=$1
  command -v cargo >/dev/null || fail "cargo is missing: install Rust by rustup (https://rustup.rs)"
  packages=$(missing_packages "$what" | tr '\n' ' ')
  [ "$what" != bench ] || what=demo
  tools=$(e2e/tools.sh "$DOTGRAFT_TOOLS_DIR" --missing "$what" | tr '\n' ' ')
  [ "${2:-}" = deny ] && [ "$(deny_version)" != $CARGO_DENY ] && deny=yes
  if [ -z "$packages$tools$deny" ]; then
    say "Nothing to install. Builds go to $CARGO_TARGET_DIR."
  else
    say "This will first"
    [ -n "$packages" ] && say "  - install Debian packages: $packages(apt-get)"
    [[ " $packages" != *" prometheus "* ]] || say "    and stop the service that prometheus comes with: tests start their own"
    [ -n "$tools" ] && say "  - build, mostly from Go modules: $tools(once, a minute or two each on two cores; into $DOTGRAFT_TOOLS_DIR)"
    [ -n "$deny" ] && say "  - build cargo-deny $CARGO_DENY from crates.io (once, a few minutes; into $DOTGRAFT_TOOLS_DIR)"
  fi
  if [ -n "$packages" ]; then
    # shellcheck disable=SC2086 # a list of words
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
      fail "could not install $packages"
    # Where there is a systemd, Debian starts it, open to the network.
    [[ " $packages" != *" prometheus "* ]] || systemctl disable --quiet --now prometheus.service >/dev/null 2>&1
  fi
  [ -z "$tools" ] || command -v go >/dev/null || fail "Go >= 1.26 is missing (https://go.dev/dl)"
  # Beside our own build: either of them links, at times, on one core.
  e2e/tools.sh "$DOTGRAFT_TOOLS_DIR" "$what" &
  tools_pid=$!
  [ -n "$deny" ] && install_deny
  return 0
}

install_deny() {
  local scratch
  scratch=$(mktemp -d)
  if CARGO_TARGET_DIR=$scratch/target cargo install --quiet --locked --version $CARGO_DENY --root "$scratch" cargo-deny; then
    mv "$scratch/bin/cargo-deny" "$DOTGRAFT_TOOLS_DIR/cargo-deny"
  else
    say "cargo-deny could not be built; its checks will be reported as skipped"
  fi
  rm -rf "$scratch"
}

# build CARGO-ARGUMENT...: our programs, once, for everything that follows; then all tools are there, too.
build() {
  local profile=${PROFILE:-dev} flag=()
  [ "$profile" = release ] && flag=(--release)
  step "build"
  if ! cargo build --locked --bins "$@" "${flag[@]}"; then
    kill "$tools_pid" 2>/dev/null
    fail "the build failed"
  fi
  wait "$tools_pid" || fail "could not build the tools"
  DOTGRAFT_BIN_DIR=$CARGO_TARGET_DIR/$([ "$profile" = release ] && echo release || echo debug)
  export DOTGRAFT_BIN_DIR
}

e2e() { "$DOTGRAFT_BIN_DIR/dotgraft-e2e" "$@"; }

# --- make test ------------------------------------------------------------------------------------------------------

# check TITLE COMMAND...: one check, counted as one.
check() {
  local title=$1 start=$SECONDS
  shift
  step "$title"
  if "$@"; then
    passed=$((passed + 1)); say "ok ($((SECONDS - start)) s)"
  else
    failed=$((failed + 1)); failures+=("$title"); say "FAILED: $title"
  fi
}

skip() { skipped=$((skipped + 1)); say "skipped: $*"; }

# counted TITLE PASSED FAILED SKIPPED STATUS: adds what a test program reported; one that broke off counts as a failure.
counted() {
  passed=$((passed + $2)); failed=$((failed + $3)); skipped=$((skipped + $4))
  [ "$5" != 0 ] && [ "$3" = 0 ] && failed=$((failed + 1))
  if [ "$5" != 0 ] || [ "$3" != 0 ]; then failures+=("$1"); fi
  say "$1: $2 passed, $3 failed, $4 skipped"
}

# test_program DIR PROGRAM: one of them, run as cargo runs it; its output and status go to $UNITS, and its failures are shown once it has ended.
# A program that hangs is ended after $UNIT_SECONDS.
test_program() {
  local dir=$1 name start=$SECONDS status=0
  name=${dir##*/}-${2##*/} name=${name%-*}
  cd "$dir" || return
  # shellcheck disable=SC2086 # UNIT_ARGS is a list of words
  CARGO_MANIFEST_DIR=$dir timeout --foreground --kill-after=30 "$UNIT_SECONDS" "$2" ${UNIT_ARGS:-} >"$UNITS/$name.log" 2>&1 || status=$?
  [ $status != 124 ] || printf '\nended after %s s\n' "$UNIT_SECONDS" >>"$UNITS/$name.log"
  echo $status >"$UNITS/$name.status"
  {
    printf '%s (%s s)\n' "$name" $((SECONDS - start))
    grep -Ev '^test .* \.\.\. (ok|ignored.*)$|^$|^running |^test result: ok' "$UNITS/$name.log"
  } >"$UNITS/$name.shown"
  cat "$UNITS/$name.shown"
}
export -f test_program

# unit_tests TITLE CARGO-ARGUMENT... [-- TEST-ARGUMENT...]: builds the test programs, and runs as many at once as there are cores: many of them wait.
unit_tests() {
  local status line title=$1 build=()
  shift
  while [ $# != 0 ] && [ "$1" != -- ]; do build+=("$1"); shift; done
  [ $# = 0 ] || shift
  UNITS=$(mktemp -d)
  export UNITS UNIT_ARGS="$*" UNIT_SECONDS=1200
  step "$title"
  cargo test --locked --no-run --message-format=json-render-diagnostics "${build[@]}" >"$UNITS/built"
  status=$?
  grep -E '"profile":\{[^}]*"test":true\}' "$UNITS/built" | sed -nE 's/^.*"manifest_path":"([^"]*)\/Cargo\.toml".*"executable":"([^"]+)".*$/\1\n\2/p' |
    xargs -r -d '\n' -n 2 -P "$(nproc)" bash -c 'test_program "$@"' _
  # A build that broke off, a program that didn't say how it went, and none at all are failures, too.
  if [ $status != 0 ] || ! compgen -G "$UNITS/*.status" >/dev/null || grep -qvx 0 "$UNITS"/*.status; then status=1; fi
  # shellcheck disable=SC2046 # three numbers
  counted "$title" $(cat "$UNITS"/*.log 2>/dev/null | awk '/^test result:/ {p += $4; f += $6; i += $8} END {print p + 0, f + 0, i + 0}') "$status"
  while read -r line; do failures+=("$line"); done < <(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$UNITS"/*.log)
  while read -r line; do failures+=("test program $line"); done < <(grep -Lx 0 "$UNITS"/*.status | sed 's|.*/||; s|\.status$||')
  rm -rf "$UNITS"
}

supply_chain() {
  local log
  if [ "$(deny_version)" != $CARGO_DENY ]; then
    step "cargo deny"; skip "cargo deny: cargo-deny $CARGO_DENY could not be built"; return
  fi
  check "cargo deny check bans licenses sources" "$DOTGRAFT_TOOLS_DIR/cargo-deny" --log-level error --locked check bans licenses sources
  step "cargo deny check advisories"
  log=$(mktemp)
  if timeout 120 "$DOTGRAFT_TOOLS_DIR/cargo-deny" --log-level error --locked check advisories >"$log" 2>&1; then
    passed=$((passed + 1)); say "ok"
  elif grep -qiE 'failed to (fetch|clone|open|load).*advisory|advisory.*(fetch|clone|download)|failed to fetch' "$log" || [ ! -s "$log" ]; then
    skip "advisories: their database can't be reached from here"
  else
    cat "$log"; failed=$((failed + 1)); failures+=("cargo deny check advisories")
  fi
  rm -f "$log"
}

# What it can't check here it says, and that counts as skipped.
chart_check() {
  local log status
  log=$(mktemp)
  charts/check.sh 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  skipped=$((skipped + $(grep -c '^  chart: skipped: ' "$log")))
  rm -f "$log"
  return "$status"
}

# What `dotgraft-e2e test --part` takes.
PARTS=(pods own failures rest)

# part NAME LOG: runs one part of the cases, each line marked with its name.
part() {
  # shellcheck disable=SC2086 # CASES is a list of words
  e2e test --part "$1" ${CASES:-} 2>&1 | tee "$2" | sed -u "s/^/$1 /"
  return "${PIPESTATUS[0]}"
}

# All parts at once: most cases wait most of the time.
e2e_tests() {
  local dir status=0 one line pids=()
  dir=$(mktemp -d)
  step "end-to-end tests"
  for one in "${PARTS[@]}"; do
    part $one "$dir/$one" &
    pids+=($!)
  done
  for one in "${pids[@]}"; do wait "$one" || status=1; done
  grep -hEq '^ +(ok|FAIL) |^skipped: ' "$dir"/* || { say "no case's id starts with: ${CASES:-}"; status=1; }
  # shellcheck disable=SC2046 # three numbers
  counted "end-to-end tests" $(awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {p += $1; f += $3; s += $5} END {print p + 0, f + 0, s + 0}' "$dir"/*) $status
  for one in "${PARTS[@]}"; do say "  part $one: $(sed -nE 's/^([0-9]+) s$/\1 s/p' "$dir/$one" | tail -1), $(grep '^slowest: ' "$dir/$one" | tail -1)"; done
  while read -r line; do failures+=("$line"); done < <(sed -n 's/^failed: //p' "$dir"/*)
  rm -rf "$dir"
}

# It waits more than it works: beside the unit tests, shown after them.
selftest_begins() {
  selftest_log=$(mktemp)
  e2e/selftest.sh >"$selftest_log" 2>&1 &
  selftest_pid=$!
}

selftest_ends() {
  local status=0
  wait "$selftest_pid" || status=$?
  cat "$selftest_log"
  rm -f "$selftest_log"
  return "$status"
}

all_tests() {
  prepare test deny
  check "cargo fmt" cargo fmt --all --check
  check "the documents point to what is there" docs/check.sh
  check "one version everywhere" deploy/release/versions.sh
  check "cargo clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
  supply_chain
  build --workspace
  check "the CRDs in crds/ are what the types say" "$DOTGRAFT_BIN_DIR/crdgen" --check crds
  check "the chart and the plain manifests" chart_check
  selftest_begins
  unit_tests "unit and property tests" --workspace
  check "the sandbox leaves nothing behind, whoever is killed" selftest_ends
  e2e_tests
  summary
}

summary() {
  step "summary"
  local f
  for f in "${failures[@]}"; do say "failed: $f"; done
  say "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" = 0 ]
}

# --- make check -----------------------------------------------------------------------------------------------------

# Tests beside the code that give files to others or make devices; what isn't root can't.
ROOTS=(csi::fsgroup::tests stream::treedigest::tests data::digest::tests)

# Tests beside the code, and of the others those whose first lines don't say that they need root.
tests_without_root() {
  local file name all=(--workspace --lib --bins) without=()
  for file in */tests/*.rs */tests/*/main.rs; do
    name=${file%/main.rs} name=$(basename "$name" .rs)
    if sed '/^\/\/!/!q' "$file" | grep -qiE '\bneeds? root\b'; then skip "$name: needs root; make test has it"; else all+=(--test "$name"); fi
  done
  if [ "$(id -u)" != 0 ]; then
    for name in "${ROOTS[@]}"; do skip "$name: needs root; make test has it"; without+=(--skip "$name"); done
  fi
  unit_tests "unit and property tests that need no root" "${all[@]}" -- "${without[@]}"
}

# What needs neither root nor Go nor a cluster.
quick_checks() {
  command -v cargo >/dev/null || fail "cargo is missing: install Rust by rustup (https://rustup.rs)"
  check "cargo fmt" cargo fmt --all --check
  check "the documents point to what is there" docs/check.sh
  check "one version everywhere" deploy/release/versions.sh
  check "cargo clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
  check "our programs" cargo build --locked --workspace --bins # as the tests build them: with -p, dependencies have other features, and are built again
  check "the CRDs in crds/ are what the types say" "${CARGO_TARGET_DIR:-target}/debug/crdgen" --check crds
  check "the chart and the plain manifests" chart_check
  tests_without_root
  skip "cargo deny and the end-to-end tests: make test has them"
  summary
}

# --- targets --------------------------------------------------------------------------------------------------------

command=${1:-help}
case $command in
  check) quick_checks ;;
  test) need_root test test; all_tests ;;
  demo) need_root demo demo; prepare demo; build "${OURS[@]}"; e2e demo ;;
  cluster) need_root cluster pods; prepare pods; build "${OURS[@]}"; e2e cluster ;;
  conformance)
    need_root conformance storage-e2e; prepare storage-e2e; build "${OURS[@]}"
    e2e conformance --to "${REPORT:-conformance-report}" ${MINUTES:+--minutes "$MINUTES"} ${FOCUS:+--focus "$FOCUS"} ;;
  bench) need_root bench bench; prepare bench; PROFILE=release build "${OURS[@]}" -p dotgraft-bench; "$DOTGRAFT_BIN_DIR/dotgraft-bench" ;;
  measure)
    need_root measure test; prepare test; PROFILE=release build "${OURS[@]}"
    # shellcheck disable=SC2086 # CASES is a list of words
    e2e test ${CASES:-measure-} ;;
  soak) need_root soak test; prepare test; build --workspace; e2e/soak.sh ;;
  mutants) e2e/mutants.sh ;;
  release-dry-run) deploy/release/dry-run.sh "${CARGO_TARGET_DIR:-target}/release-dry-run" ;;
  down) need_root down demo; DOTGRAFT_BIN_DIR=$CARGO_TARGET_DIR/${PROFILE:-debug}; e2e down ;;
  *) sed -n '2,6p' "$0"; exit 1 ;;
esac
