#!/usr/bin/env bash
# Draws a picture from its description: docs/picture/NAME.txt, whose first lines say how, becomes docs/picture/NAME.svg.
#
#   docs/picture/draw.sh NAME            writes the SVG
#   docs/picture/draw.sh --check NAME    says whether it is what the description says
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

draw() {
  awk '
    function trim(s) { sub(/^ +/, "", s); sub(/ +$/, "", s); return s }
    function safe(s) { gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/>/, "\\&gt;", s); return s }
    function text(x, y, class, s) { if (s != "") printf "<text x=\"%s\" y=\"%s\" class=\"%s\">%s</text>\n", x, y, class, safe(s) }
    function line(heads) {
      printf "<line x1=\"%s\" y1=\"%s\" x2=\"%s\" y2=\"%s\" class=\"arrow\" marker-end=\"url(#head)\"%s/>\n", n[2], n[3], n[4], n[5], heads == 2 ? " marker-start=\"url(#head)\"" : ""
      if (count > 2) { split(part[3], at, " "); text(at[1], at[2], "label", part[2]) }
    }
    /^#/ || /^ *$/ { next }
    { count = split($0, part, "|"); for (i = 1; i <= count; i++) part[i] = trim(part[i]); split(part[1], n, / +/) }
    n[1] == "size" {
      printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %s %s\" width=\"%s\" height=\"%s\" role=\"img\">\n", n[2], n[3], n[2], n[3]
      print "<style>"
      print "  rect.page { fill: #ffffff } text { font-family: system-ui, sans-serif; fill: #1f2933; text-anchor: middle }"
      print "  .group { fill: #f3f6f9; stroke: #9fb3c8; stroke-dasharray: 6 4 } .box { fill: #ffffff; stroke: #486581; stroke-width: 1.5 }"
      print "  .disk { fill: #e3f0e8; stroke: #3e7d5a; stroke-width: 1.5 } .arrow { stroke: #486581; stroke-width: 1.5 } marker path { fill: #486581 }"
      print "  .name { font-size: 15px; font-weight: 600 } .title { font-size: 14px; font-weight: 600; text-anchor: start; fill: #486581 }"
      print "  .line { font-size: 12.5px } .label { font-size: 12px; fill: #486581 }"
      print "</style>"
      print "<defs><marker id=\"head\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto-start-reverse\"><path d=\"M0 0L10 5L0 10z\"/></marker></defs>"
      printf "<rect class=\"page\" width=\"%s\" height=\"%s\"/>\n", n[2], n[3]
    }
    n[1] == "group" {
      printf "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"10\" class=\"group\"/>\n", n[2], n[3], n[4], n[5]
      text(n[2] + 14, n[3] + 22, "title", part[2])
    }
    n[1] == "box" || n[1] == "disk" {
      printf "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"%s\" class=\"%s\"/>\n", n[2], n[3], n[4], n[5], n[1] == "disk" ? 16 : 6, n[1]
      text(n[2] + n[4] / 2, n[3] + 26, "name", part[2])
      for (i = 3; i <= count; i++) text(n[2] + n[4] / 2, n[3] + 10 + 20 * i - 20, "line", part[i])
    }
    n[1] == "arrow" { line(1) }
    n[1] == "both" { line(2) }
    END { print "</svg>" }' "$1.txt"
}

if [ "${1:-}" = --check ]; then
  draw "$2" | cmp -s - "$2.svg" || { echo "docs/picture/$2.svg is not what $2.txt says (docs/picture/draw.sh $2)" >&2; exit 1; }
else
  draw "${1:?usage: draw.sh [--check] NAME}" >"$1.svg.new" && mv "$1.svg.new" "$1.svg"
fi
