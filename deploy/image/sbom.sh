#!/usr/bin/env bash
# Writes the bill of materials of one of our images, as SPDX 2.3 JSON, to standard output.
#
#   deploy/image/sbom.sh CRATE [PACKAGES]
#
# Crates: CRATE and everything that Cargo.lock lets it reach, with the lock's checksums. That includes what only building or testing
# needs: the list may be too long, never too short. PACKAGES: a file of lines `name version architecture [homepage]`, Debian's.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CRATE=${1:?usage: sbom.sh CRATE [PACKAGES]}
PACKAGES=${2:-/dev/null}
DATE=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null || echo 0)}" +%FT%TZ)
ID=$(cat "$ROOT/Cargo.lock" "$PACKAGES" | sha256sum | cut -c1-32)

awk -v crate="$CRATE" -v date="$DATE" -v id="$ID" -v packages="$PACKAGES" '
  function add(text) { all = all (all == "" ? "" : ",\n") text }
  function relation(from, kind, to) { relations = relations (relations == "" ? "" : ",\n") \
    "    {\"spdxElementId\": \"" from "\", \"relationshipType\": \"" kind "\", \"relatedSpdxElement\": \"" to "\"}" }
  function ref(key, r) { r = key; gsub(/[^A-Za-z0-9.-]/, "-", r); return "SPDXRef-" r }
  function keep(   key) {
    if (name == "") return
    key = name " " version
    known[key] = 1; sum[key] = checksum; from[key] = source; needs[key] = deps; versions[name] = versions[name] " " version
    name = version = checksum = source = deps = ""
  }
  # A dependency is `name` where one version is locked, else `name version`.
  function resolve(dep,   parts, v) { split(dep, parts, " "); if (parts[2] != "") return parts[1] " " parts[2]; v = versions[parts[1]]; sub(/^ /, "", v); return parts[1] " " v }
  function emit(key,   parts, text) {
    split(key, parts, " ")
    text = "    {\"SPDXID\": \"" ref("crate-" parts[1] "-" parts[2]) "\", \"name\": \"" parts[1] "\", \"versionInfo\": \"" parts[2] "\", \"filesAnalyzed\": false, \"licenseConcluded\": \"NOASSERTION\", \"licenseDeclared\": \"NOASSERTION\", \"copyrightText\": \"NOASSERTION\", "
    text = text "\"downloadLocation\": \"" (from[key] ~ /crates.io/ ? "https://crates.io/crates/" parts[1] "/" parts[2] : "NOASSERTION") "\""
    if (sum[key] != "") text = text ", \"checksums\": [{\"algorithm\": \"SHA256\", \"checksumValue\": \"" sum[key] "\"}]"
    add(text ", \"externalRefs\": [{\"referenceCategory\": \"PACKAGE-MANAGER\", \"referenceType\": \"purl\", \"referenceLocator\": \"pkg:cargo/" parts[1] "@" parts[2] "\"}]}")
  }
  /^\[\[package\]\]/ { keep(); next }
  /^name = / { gsub(/"/, ""); name = $3; next }
  /^version = / && name != "" { gsub(/"/, ""); version = $3; next }
  /^source = / { gsub(/"/, ""); source = $3; next }
  /^checksum = / { gsub(/"/, ""); checksum = $3; next }
  /^ "/ { gsub(/[",]/, ""); sub(/^ /, ""); deps = deps "\n" $0; next }
  END {
    keep()
    first = resolve(crate)
    if (!(first in known)) { print "sbom: Cargo.lock has no " crate > "/dev/stderr"; exit 1 }
    queue[n = 1] = first; seen[first] = 1
    for (i = 1; i <= n; i++) {
      emit(queue[i]); split(queue[i], me, " ")
      k = split(needs[queue[i]], list, "\n")
      for (j = 1; j <= k; j++) if (list[j] != "") {
        key = resolve(list[j])
        if (!(key in seen)) { seen[key] = 1; queue[++n] = key }
        split(key, to, " "); relation(ref("crate-" me[1] "-" me[2]), "DEPENDS_ON", ref("crate-" to[1] "-" to[2]))
      }
    }
    split(first, me, " "); root = ref("crate-" me[1] "-" me[2])
    relation("SPDXRef-DOCUMENT", "DESCRIBES", root)
    while ((getline line < packages) > 0) {
      split(line, p, " ")
      if (p[1] in listed) continue
      listed[p[1]] = 1
      add("    {\"SPDXID\": \"" ref("deb-" p[1]) "\", \"name\": \"" p[1] "\", \"versionInfo\": \"" p[2] "\", \"filesAnalyzed\": false, \"licenseConcluded\": \"NOASSERTION\", \"licenseDeclared\": \"NOASSERTION\", \"copyrightText\": \"NOASSERTION\", \"downloadLocation\": \"NOASSERTION\", \"externalRefs\": [{\"referenceCategory\": \"PACKAGE-MANAGER\", \"referenceType\": \"purl\", \"referenceLocator\": \"pkg:deb/debian/" p[1] "@" p[2] "?arch=" p[3] "\"}]}")
      relation("SPDXRef-DOCUMENT", "DESCRIBES", ref("deb-" p[1]))
    }
    print "{"
    print "  \"spdxVersion\": \"SPDX-2.3\", \"dataLicense\": \"CC0-1.0\", \"SPDXID\": \"SPDXRef-DOCUMENT\", \"name\": \"" crate "\","
    print "  \"documentNamespace\": \"https://dotgraft.dev/spdx/" crate "-" id "\","
    print "  \"creationInfo\": {\"created\": \"" date "\", \"creators\": [\"Tool: deploy/image/sbom.sh\"]},"
    print "  \"packages\": [\n" all "\n  ],\n  \"relationships\": [\n" relations "\n  ]\n}"
  }' "$ROOT/Cargo.lock"
