#!/usr/bin/env bash
# Takes one guard, order or pin out of the code at a time, and says which test misses it.
#
#   e2e/mutants.sh                     all rows of e2e/mutants.tsv
#   e2e/mutants.sh PREFIX...           only those whose file or number begins so
#   e2e/mutants.sh --write             all, and the result to docs/mutants.md
#
# A row: FILE, a sed expression (extended) that changes it, the test command that has to fail; tabs between them. Before the mutants each command
# has to pass. A row whose expression changes nothing, or whose code doesn't compile, proves nothing and counts as a failure.
# What is changed is a copy: a worktree of its own with the uncommitted changes of this one, and a target directory that is kept between runs.
# Environment: CARGO_TARGET_DIR (mutants/ is made in it), MINUTES (longest that one test command may take, 10).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
ROOT=$PWD
TABLE=e2e/mutants.tsv
LIMIT=$((${MINUTES:-10} * 60))
write=no
[ "${1:-}" != --write ] || { write=yes; shift; }

SCRATCH=$(mktemp -d)
WORK=$SCRATCH/source
trap 'git worktree remove --force "$WORK" 2>/dev/null; rm -rf "$SCRATCH"' EXIT
git worktree add --quiet --detach "$WORK" HEAD || exit 1
git diff --binary HEAD >"$SCRATCH/changes"
[ ! -s "$SCRATCH/changes" ] || git -C "$WORK" apply "$SCRATCH/changes" || exit 1
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/mutants CARGO_TERM_COLOR=never RUST_BACKTRACE=0
mkdir -p "$CARGO_TARGET_DIR"

# run COMMAND: in the copy; its output in $SCRATCH/log.
run() { (cd "$WORK" && timeout -k 10 "$LIMIT" bash -c "$1") >"$SCRATCH/log" 2>&1; }

# What a failed test command says: the first test that failed, by name.
who() {
  local name
  name=$(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$SCRATCH/log" | head -1)
  [ -n "$name" ] || name=$(sed -nE "s/^thread '([^']*)'.* panicked.*/\1/p" "$SCRATCH/log" | head -1)
  [ -n "$name" ] || name=$(sed -nE 's/^failed: //p' "$SCRATCH/log" | head -1)
  echo "${name:-its command fails}"
}

# wanted NUMBER FILE
wanted() {
  local prefix
  [ ${#ONLY[@]} != 0 ] || return 0
  for prefix in "${ONLY[@]}"; do [[ $2 == "$prefix"* || $1 == "$prefix" ]] && return 0; done
  return 1
}

ONLY=("$@")
rows=() number=0
while IFS=$'\t' read -r file change command; do
  [[ -n $file && $file != "#"* ]] || continue
  number=$((number + 1))
  wanted $number "$file" && rows+=("$number"$'\t'"$file"$'\t'"$change"$'\t'"$command")
done <"$TABLE"
[ ${#rows[@]} != 0 ] || { echo "no row of $TABLE begins with: ${ONLY[*]:-}"; exit 1; }

echo "${#rows[@]} mutants; first each test as the code is"
while read -r command; do
  start=$SECONDS
  run "$command" || { cat "$SCRATCH/log"; echo "the code as it is fails: $command"; exit 1; }
  echo "  passes ($((SECONDS - start)) s): $command"
done < <(printf '%s\n' "${rows[@]}" | cut -f4 | sort -u)

killed=0 survived=0 void=0
: >"$SCRATCH/result"
for row in "${rows[@]}"; do
  IFS=$'\t' read -r number file change command <<<"$row"
  cp "$WORK/$file" "$SCRATCH/before" || { void=$((void + 1)); echo "  $number VOID: there is no $file"; continue; }
  sed -E -i "$change" "$WORK/$file"
  if cmp -s "$SCRATCH/before" "$WORK/$file"; then
    void=$((void + 1)); by="VOID: changes nothing"
  elif run "$command"; then
    survived=$((survived + 1)); by="SURVIVED"
  elif [ $? -ge 124 ]; then
    killed=$((killed + 1)); by="does not end"
  elif grep -qE '^error(\[E[0-9]+\])?: ' "$SCRATCH/log" && ! grep -qE '^test result|^error: test failed|^error: [0-9]+ target' "$SCRATCH/log"; then
    void=$((void + 1)); by="VOID: $(grep -m1 -E '^error' "$SCRATCH/log")"
  else
    killed=$((killed + 1)); by=$(who)
  fi
  cp "$SCRATCH/before" "$WORK/$file"
  printf '  %s %s: %s\n' "$number" "$file" "$by"
  printf '| %s | `%s` | `%s` | %s |\n' "$number" "$file" "${change//|/\\|}" "$by" >>"$SCRATCH/result"
done
echo "$killed missed by a test, $survived survived, $void void"

if [ $write = yes ]; then
  {
    cat <<HEAD
# Mutants

Each line takes one guard, order or pin out of the code, and names the first test that fails without it. Written by \`e2e/mutants.sh --write\` from
\`e2e/mutants.tsv\`; \`make mutants\` runs it. $killed of $((killed + survived + void)) are missed by a test.

| | In | Change (sed) | Missed by |
|---|---|---|---|
HEAD
    cat "$SCRATCH/result"
  } >docs/mutants.md
fi
[ $((survived + void)) = 0 ]
