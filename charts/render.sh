#!/usr/bin/env bash
# Writes deploy/programs/ from the chart, for those who don't use Helm: one source, two forms.
#
#   charts/render.sh            writes the files
#   charts/render.sh --check    fails if they are not what the chart says
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
HELM=${HELM:-$(command -v helm || echo "${DOTGRAFT_TOOLS_DIR:-${DOTGRAFT_CACHE:-$HOME/.cache/dotgraft}/bin}/helm")}
OUT=deploy/programs
[ -x "$HELM" ] || { echo "render: helm is missing" >&2; exit 1; }

# render FILE HEAD TEMPLATE...
render() {
  local file=$1 head=$2 show=() t
  shift 2
  for t in "$@"; do show+=(--show-only "templates/$t.yaml"); done
  { printf '# Made from charts/dotgraft by charts/render.sh; change it there.\n%s\n' "$head"
    "$HELM" template dotgraft charts/dotgraft --namespace dotgraft-system --set pool.file.size=20Gi "${show[@]}" 2>"$SCRATCH/err" |
      grep -vE '^# Source: |app.kubernetes.io/managed-by: Helm|helm.sh/chart: ' | sed '1{/^---$/d}'
  } >"$SCRATCH/$file" || { cat "$SCRATCH/err" >&2; exit 1; }
}

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
render operator.yaml '# Two operators with the CSI sidecars. VolumeSnapshots: see the chart, or add the csi-snapshotter likewise.' operator availability
render agent.yaml '# An agent on every node. Before you apply it, say where its pool is: --pool-file-size, or --pool-device instead of both --pool-file flags.' agent
render services.yaml '# For metrics and the pod webhook.' services
if [ "${1:-}" = --check ]; then
  rm "$SCRATCH/err"
  diff -ru "$OUT" "$SCRATCH" || { echo "render: $OUT is not what the chart says: run charts/render.sh" >&2; exit 1; }
else
  mkdir -p "$OUT" && rm "$SCRATCH/err" && cp "$SCRATCH"/*.yaml "$OUT/"
fi
