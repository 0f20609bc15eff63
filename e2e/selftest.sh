#!/usr/bin/env bash
# Proves that a sandbox leaves nothing behind: no process, mount, loop device, network device, control group or file, whoever
# is killed and how.
#
#   DOTGRAFT_BIN_DIR=... e2e/selftest.sh
#
# `dotgraft-e2e hold` starts a control plane, mounts btrfs from a loop device and keeps a file open on it; then it waits. With
# `--kubelets` two nodes run pods, one of which is frozen: a frozen process doesn't die of a signal.
set -uo pipefail
BASE=$(mktemp -d)
export DOTGRAFT_RIG_BASE=$BASE
trap 'rm -rf "$BASE"' EXIT
bad=0
links=$(ip -o link | cut -d: -f2)

# start [--kubelets]
start() {
  # Emptied here: the redirection below happens in the new process, and what the last run wrote is there until then.
  : >"$BASE/out"
  "$DOTGRAFT_BIN_DIR/dotgraft-e2e" hold "$@" >"$BASE/out" 2>&1 &
  runner=$!
  for _ in $(seq 1200); do
    grep -q '^holding' "$BASE/out" && { names=$(cd "$BASE" && ls -d dotgraft-rig-*); return; }
    sleep 0.05
  done
  echo "the sandbox did not come up:"; cat "$BASE/out"; kill -INT "$runner" 2>/dev/null; gone; exit 1
}
guard() { cat "$BASE"/dotgraft-rig-*/guard.pid; }
leftovers() {
  grep -ls "$BASE/[d]otgraft-rig-" /proc/[0-9]*/cmdline 2>/dev/null | sed 's/^/process /'
  grep -s "$BASE" /proc/mounts | sed 's/^/mount /'
  grep -ls "$BASE" /sys/block/loop*/loop/backing_file 2>/dev/null | sed 's/^/loop device /'
  for name in $names; do find /sys/fs/cgroup -maxdepth 2 -name "$name" | sed 's/^/control group /'; done
  [ "$(ip -o link | cut -d: -f2)" = "$links" ] || ip -o link | sed 's/^/network device /'
  find "$BASE" -mindepth 1 -maxdepth 3 -not -name out 2>/dev/null | head -5 | sed 's/^/file /'
}
# gone: waits until the runner has ended, 90 s at most; then it says what still lives, and ends it.
gone() {
  for _ in $(seq 1800); do kill -0 "$runner" 2>/dev/null || { wait "$runner" 2>/dev/null; return 0; }; sleep 0.05; done
  ps -e -o pid,ppid,stat,wchan:24,args | grep "$BASE/[d]otgraft-rig-\|^ *$runner " | cut -c1-150
  # shellcheck disable=SC2046 # one or two pids
  kill -KILL $(guard 2>/dev/null) "$runner"
  wait "$runner" 2>/dev/null
  return 1
}
# check WHAT: waits until the runner has ended and nothing is left, for which it has 15 s more.
check() {
  local left
  gone || { echo "  $1: THE RUNNER DOES NOT END"; bad=1; }
  for _ in $(seq 300); do left=$(leftovers); [ -z "$left" ] && break; sleep 0.05; done
  if [ -z "$left" ]; then echo "  $1: nothing left"; else echo "  $1: LEFT BEHIND"; echo "$left"; bad=1; fi
}

start; [ -n "$(leftovers)" ] || { echo "the check itself sees nothing"; exit 1; }
kill -INT "$runner";                 check "Ctrl-C"
start; kill -TERM "$runner";         check "SIGTERM of the runner"
start; kill -KILL "$runner";         check "kill -9 of the runner"
start; kill -KILL "$(guard)";        check "kill -9 of the guard"
start; kill -KILL "$(guard)" "$runner"; gone || bad=1; sleep 1
start; kill -INT "$runner";          check "kill -9 of both, then another run"
start --kubelets; kill -INT "$runner";          check "Ctrl-C, with pods and a frozen node"
start --kubelets; kill -KILL "$(guard)";        check "kill -9 of the guard, with pods and a frozen node"
start --kubelets; kill -KILL "$runner";         check "kill -9 of the runner, with pods and a frozen node"
exit $bad
