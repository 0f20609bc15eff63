#!/usr/bin/env bash
# Writes the fingerprint of a chart's defaults into its values.yaml and into its templates, or says what it should be.
#
#   charts/fingerprint.sh CHART [--show]
#
# It is that of values.yaml without comments. An upgrade with the defaults of another version is refused by it (ADR 36).
set -euo pipefail
chart=$1
is=$(grep -vE '^ *(#|$)|^defaults:' "$chart/values.yaml" | sha256sum | cut -c 1-8)
if [ "${2:-}" = --show ]; then echo "$is"; exit; fi
sed -i "s/^defaults: .*/defaults: \"$is\"/" "$chart/values.yaml"
sed -i "s/\(define \"dotgraft.defaults\" -}}\)[^{]*/\1$is/" "$chart/templates/_helpers.tpl"
