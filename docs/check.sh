#!/usr/bin/env bash
# Whether what the documents point to is there: files, headings, every ADR in its index.
#
#   docs/check.sh            says what is wrong
#   docs/check.sh --write    writes the index of the ADRs first
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bad=0
wrong() { printf '  docs: %s\n' "$*" >&2; bad=1; }

# The index of the ADRs is made of their first lines.
index() {
  cat <<'HEAD'
# Decisions

Each says what stood in the way, what was decided, and what follows. A decision binds until a later one improves on it, which then says so. Written
by `docs/check.sh --write` from the first lines of the files.

| | |
|---|---|
HEAD
  local file
  for file in docs/adr/[0-9]*.md; do
    sed -nE "1s|^# ([0-9]+)\. (.*)|\| [\1](${file##*/}) \| \2 \||p" "$file"
  done
}

[ "${1:-}" != --write ] || index >docs/adr/README.md
index | cmp -s - docs/adr/README.md || wrong "docs/adr/README.md is not the index of docs/adr/ (docs/check.sh --write)"
for file in docs/adr/[0-9]*.md; do
  number=$(basename "$file" | sed -E 's/^0*([0-9]+)-.*/\1/')
  head -1 "$file" | grep -q "^# $number\. " || wrong "$file does not begin with its number"
done
twice=$(basename -a docs/adr/[0-9]*.md | cut -c1-4 | sort | uniq -d)
[ -z "$twice" ] || wrong "two ADRs with the number $twice"

# The anchors of a page: its headings as GitHub makes them, and <a id="…">. No code.
anchors() {
  awk '/^```/ {code = !code} code {next}
    { rest = $0; while (match(rest, /<a id="[^"]*"/)) { print substr(rest, RSTART + 7, RLENGTH - 8); rest = substr(rest, RSTART + RLENGTH) } }
    /^#+ / {sub(/^#+ /, ""); $0 = tolower($0); gsub(/[^a-z0-9 _-]/, ""); gsub(/ /, "-"); n = seen[$0]++; print $0 (n ? "-" n : "")}' "$1"
}

# links PAGE: what it links to, a line each; no code, no other sites.
links() {
  awk '/^```/ {code = !code} !code {gsub(/`[^`]*`/, ""); print}' "$1" | grep -oE '\]\([^) ]+\)' | sed -E 's/^\]\((.*)\)$/\1/' | grep -vE '^(https?:|mailto:)' || true
}

# promises.md: each `function` (file) is there, and each test: a function, or the id of an end-to-end case.
promises() {
  local name file
  while IFS=$'\t' read -r name file; do
    grep -qE "fn $name\b" "$file" 2>/dev/null || wrong "docs/promises.md names $name in $file, which has no such function"
  done < <(grep -oE '`[a-z_]+` \([a-z/_.-]+\.rs\)' docs/promises.md | sed -E 's/`([a-z_]+)` \((.*)\)/\1\t\2/')
  while read -r name; do
    grep -rqE --include='*.rs' "fn $name\(|\"$name\"" engine operator node-agent cli api e2e || wrong "docs/promises.md names the test $name, which is not there"
  done < <(awk -F'|' '/^\|/ && NF >= 5 {print $4}' docs/promises.md | grep -oE '`[^`]+`' | tr -d '`' | sort -u)
}
promises

# Cases share e2e/src/steps, never each other: a file of cases can be read, changed and deleted alone.
cases=$(find e2e/src/cases -maxdepth 1 -mindepth 1 ! -name mod.rs -printf '%f\n' | sed 's/\.rs$//' | paste -sd'|')
if found=$(grep -rnE "(cases|super)::\{?($cases)\b" e2e/src/cases); then wrong "cases that use other cases: $found"; fi

docs/picture/draw.sh --check architecture || bad=1

count=0
pages=$(git ls-files --cached --others --exclude-standard -- '*.md')
for page in $pages; do
  dir=$(dirname "$page")
  while read -r link; do
    [ -n "$link" ] || continue
    count=$((count + 1))
    file=${link%%#*} anchor=
    [[ $link != *"#"* ]] || anchor=${link#*#}
    target=$page
    [ -z "$file" ] || target=$dir/$file
    if [ ! -e "$target" ]; then wrong "$page links to $link, which is not there"; continue; fi
    [ -z "$anchor" ] || anchors "$target" | grep -qxF -- "$anchor" || wrong "$page links to $link, and there is no such heading"
  done < <(links "$page")
done
[ $bad = 0 ] || exit 1
echo "  docs: $count links and $(find docs/adr -name '[0-9]*.md' | wc -l) decisions are where they should be"
