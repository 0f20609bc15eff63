#!/usr/bin/env bash
# Pins the images of a chart, which is a copy of charts/dotgraft, to digests: lines `NAME DIGEST` on standard input, NAME as in `images` of values.yaml.
# Every image must be named. What was installed by an older release's digests is not gone on with: the fingerprint of the defaults is another.
#
#   deploy/release/pin.sh CHART <digests
set -euo pipefail
chart=$1
while read -r name digest; do
  [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "pin: $name has the digest '$digest'" >&2; exit 1; }
  grep -qE "^  $name: \{.*digest: \"\"\}$" "$chart/values.yaml" || { echo "pin: values.yaml has no image $name without a digest" >&2; exit 1; }
  sed -i "/^  $name: {/ s/digest: \"\"/digest: \"$digest\"/" "$chart/values.yaml"
done
if grep -nE '^  [a-z]+: \{repository: .*digest: ""\}$' "$chart/values.yaml" >&2; then echo "pin: these have no digest" >&2; exit 1; fi
"$(dirname "${BASH_SOURCE[0]}")/../../charts/fingerprint.sh" "$chart"
