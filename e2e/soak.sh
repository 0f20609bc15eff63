#!/usr/bin/env bash
# Everything that is long and random, with new seeds each round, until the time is over. Who finds something prints how to see it again.
#
#   e2e/soak.sh                        for MINUTES (60), from SEED (the date) on
#   e2e/soak.sh NAME...                only these lines of e2e/soak.tsv
#
# A line of e2e/soak.tsv: NAME, what it looks for, a command; tabs between them. The command gets SEED (a number, another one each round) and ends
# by itself in a minute or so. It fails if it finds something; it may use what `make test` builds: DOTGRAFT_BIN_DIR, DOTGRAFT_TOOLS_DIR.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
TABLE=e2e/soak.tsv
END=$((SECONDS + ${MINUTES:-60} * 60))
seed=${SEED:-$(date +%Y%m%d)}
names=() commands=()
while IFS=$'\t' read -r name what command; do
  [[ -n $name && $name != "#"* ]] || continue
  [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
  names+=("$name") commands+=("$command")
  printf '%-18s %s\n' "$name" "$what"
done <"$TABLE"
[ ${#names[@]} != 0 ] || { echo "$TABLE has none of: $*"; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
found=0 done_=0 first=$seed
declare -A failed=()
while [ $SECONDS -lt $END ]; do
  for i in "${!names[@]}"; do
    [ $SECONDS -lt $END ] || break
    start=$SECONDS
    # The limit is for what hangs: a round isn't cut because the time is over.
    if SEED=$seed timeout -k 10 1800 bash -c "${commands[i]}" >"$log" 2>&1; then
      done_=$((done_ + 1)); echo "ok     ${names[i]} SEED=$seed ($((SECONDS - start)) s)"
    else
      found=$((found + 1)); failed[${names[i]}]+=" $seed"
      echo "FOUND  ${names[i]} SEED=$seed ($((SECONDS - start)) s); again: SEED=$seed bash -c '${commands[i]}'"
      tail -60 "$log"
    fi
  done
  seed=$((seed + 1))
done
for name in "${!failed[@]}"; do echo "failed: $name, seeds${failed[$name]}"; done
echo "$done_ passed, $found failed; seeds $first to $((seed - 1))"
[ $found = 0 ]
