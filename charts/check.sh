#!/usr/bin/env bash
# Checks the chart and the plain manifests, without a cluster. Called by `make test`; says by name what it can't check here.
#
#   charts/check.sh
#
# With helm (`e2e/tools.sh DIR helm` builds it) what it renders is looked at, with promtool the alerts are tested, with DOTGRAFT_BIN_DIR and the
# sidecars' programs all flags; without any of them, that metrics, alerts, values and versions are written down where they should be.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
TOOLS=${DOTGRAFT_TOOLS_DIR:-${DOTGRAFT_CACHE:-$HOME/.cache/dotgraft}/bin}
export HELM=${HELM:-$(command -v helm || echo "$TOOLS/helm")}
PROMTOOL=${PROMTOOL:-$(command -v promtool || echo "$TOOLS/promtool")}
CHART=charts/dotgraft
failed=0

say()  { printf '  chart: %s\n' "$*"; }
bad()  { printf '  chart: FAILED: %s\n' "$*" >&2; failed=1; }
skip() { printf '  chart: skipped: %s\n' "$*"; }

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

helm() { "$HELM" "$@" 2>"$SCRATCH/err"; }
template() { helm template r "$CHART" --namespace somewhere "$@" >"$SCRATCH/out"; }
troubles() { grep -v '^level=INFO' "$SCRATCH/err" "$SCRATCH/out" >&2; }

# Sets of values that people use, a line each.
GOOD=(
  "--set pool.file.size=100Gi"
  "--set pool.device=/dev/disk/by-partlabel/dotgraft --set csi.enabled=false"
  "--set pool.file.size=1Ti --set pool.file.path=/data/pool.img --set kubeletDir=/var/lib/k0s/kubelet --set stateDir=/data/state/"
  "--set pool.device=/dev/sdb --set poolGroup=ssd --set networkPolicy.enabled=true --set serviceMonitor.enabled=true --set serviceMonitor.labels.release=p --set prometheusRule.enabled=true --set dashboard.enabled=true"
  "--set pool.file.size=1Gi --set volumeSnapshotClass.create=true --set volumeSnapshotClass.default=true --set operator.antiAffinity=required --set commonLabels.team=a --set commonAnnotations.note=b"
  "--set pool.file.size=1Gi --set operator.antiAffinity=none --set operator.podDisruptionBudget.enabled=false --set imagePullSecrets={a,b} --set images.agent.digest=sha256:$(printf 'a%.0s' {1..64})"
  "--set pool.file.size=1Gi --set storageClasses[0].name=fast,storageClasses[0].default=true,storageClasses[0].poolGroup=ssd,storageClasses[0].replicas=2,storageClasses[0].fencing=Manual,storageClasses[0].historyLimit=10Gi"
  "--set pool.file.size=1Gi --set webhook.port=8443 --set networkPolicy.enabled=true"
  "--set pool.file.size=1.5G --set operator.logLevel=info\\,kube_client::client=debug --set agent.resources.limits.cpu=500m --set agent.resources.limits.memory=1Gi"
  "--set pool.file.size=1024Mi --set storageClasses[0].name=a,storageClasses[0].labels.team=b"
  "--set pool.file.size=1Gi --api-versions snapshot.storage.k8s.io/v1 --set networkPolicy.from[0].namespaceSelector.matchLabels.a=b --set networkPolicy.enabled=true"
)
# And such that must be refused.
BAD=(
  ""
  "--set pool.device=/dev/sdb --set pool.file.size=1Gi"
  "--set pool.device=sdb"
  "--set pool.file.size=lots"
  "--set pool.file.size=1Gi --set agent.portt=1"
  "--set pool.file.size=1Gi --set crds.aply=false"
  "--set pool.file.size=1Gi --set storageClasses[0].name=a,storageClasses[0].fencing=Automatic"
  "--set pool.file.size=1Gi --set storageClasses[0].replicas=2"
  "--set pool.file.size=1Gi --set images.agent.digest=latest"
  "--set pool.file.size=1Gi --set operator.replicas=0"
  "--set pool.file.size=1Gi --set webhook.port=0"
  "--set pool.file.size=1Gi --set storageClasses[0].name=a,storageClasses[0].mountOptions[0]=discard"
  "--set pool.file.size=100Mi"
  "--set pool.file.size=1000000000"
  "--set pool.file.size=1Gi --set agent.logLevel=loud"
  "--set pool.file.size=1Gi --set operator.logLevel=info\\,kube"
  "--set pool.file.size=1Gi --set agent.resources.limits.memory=lots"
  "--set pool.file.size=1Gi --set operator.resources.limit.memory=1Gi"
  "--set pool.file.size=1Gi --set agent.peerPort=9807"
  "--set pool.file.size=1Gi --set agent.probePort=9806"
  "--set pool.file.size=1Gi --set webhook.port=9808"
)

check_values() {
  local values
  for values in "${GOOD[@]}"; do
    # shellcheck disable=SC2086 # a list of words
    helm lint --strict "$CHART" ${values/--api-versions snapshot.storage.k8s.io\/v1/} >"$SCRATCH/out" || { bad "helm lint --strict $values"; troubles; }
    # shellcheck disable=SC2086
    template $values || { bad "helm template $values"; troubles; }
  done
  for values in "${BAD[@]}"; do
    # shellcheck disable=SC2086
    if template $values; then bad "these values must be refused: ${values:-none}"; fi
  done
  say "${#GOOD[@]} sets of values render, ${#BAD[@]} are refused"
}

# Kind and name of every object in a file, sorted.
objects() { awk '/^---/ {k = ""} /^kind: / {k = $2} /^metadata:/ {m = 1; next} m && /^  name: / {print k, $2; m = 0} /^[a-z]/ && !/^metadata:/ {m = 0}' "$@" | sort; }

# All of deploy/ is in what Helm installs, for the namespace of the release, and nothing says another namespace.
check_deploy() {
  template --set pool.file.size=1Gi || { bad "helm template"; return; }
  objects deploy/*.yaml | grep -v '^Namespace ' >"$SCRATCH/deploy"
  objects "$SCRATCH/out" >"$SCRATCH/chart"
  comm -23 "$SCRATCH/deploy" "$SCRATCH/chart" >"$SCRATCH/missing"
  [ ! -s "$SCRATCH/missing" ] || bad "deploy/ has what the chart lacks: $(paste -sd, "$SCRATCH/missing")"
  ! grep -n 'dotgraft-system' "$SCRATCH/out" >&2 || bad "dotgraft-system in a release for another namespace"
  objects deploy/*.yaml deploy/programs/*.yaml | uniq -d | grep . >&2 && bad "an object stands in two files of deploy/"
  # The StorageClass is the one object that both write.
  helm template r "$CHART" --set pool.file.size=1Gi --show-only templates/storageclasses.yaml | settings >"$SCRATCH/a"
  settings <deploy/csi-storageclass.yaml >"$SCRATCH/b"
  diff "$SCRATCH/a" "$SCRATCH/b" >&2 || bad "deploy/csi-storageclass.yaml is not the chart's StorageClass"
  # Without the right to change CRDs, everything else stays.
  template --set pool.file.size=1Gi --set crds.apply=false && objects "$SCRATCH/out" | comm -3 - "$SCRATCH/chart" | sed 's/^\t//' >"$SCRATCH/a"
  objects deploy/13-rbac-crds.yaml | diff - "$SCRATCH/a" >&2 || bad "crds.apply=false leaves out other things than deploy/13-rbac-crds.yaml"
  charts/render.sh --check >&2 || bad "deploy/programs/"
  say "deploy/ and the chart say the same ($(wc -l <"$SCRATCH/deploy") objects, and deploy/programs/)"
}

settings() { grep -vE '^ *(#|---)|^$|labels:|app.kubernetes.io|helm.sh' | sort; }

# Defaults have a fingerprint, so that an upgrade with those of another version is refused instead of rendered without new keys.
check_defaults() {
  local is want
  want=$(charts/fingerprint.sh $CHART --show)
  for is in "$(sed -n 's/^defaults: "\(.*\)"/\1/p' $CHART/values.yaml)" "$(sed -n 's/.*define "dotgraft.defaults" -}}\(.*\){{- end.*/\1/p' $CHART/templates/_helpers.tpl)"; do
    [ "$is" = "$want" ] || bad "the defaults are others than ${is:-nothing}: run charts/fingerprint.sh $CHART"
  done
  # As --reuse-values does: this chart, the values of the one before.
  cp -rL "$CHART" "$SCRATCH/older"
  sed -i '/^defaults:/d' "$SCRATCH/older/values.yaml"
  if helm template r "$SCRATCH/older" --set pool.file.size=1Gi >"$SCRATCH/out"; then bad "defaults of another version are taken"; fi
  grep -q -- '--reset-then-reuse-values' "$SCRATCH/err" || bad "a refusal of other defaults doesn't say what to do"
  say "defaults of another version are refused"
}

# The chart of a release starts every image by its digest, and its defaults are others than those of the source.
check_pinned() {
  local name digest
  digest=sha256:$(printf 'b%.0s' {1..64})
  mkdir "$SCRATCH/pinned" && cp -rL "$CHART" "$SCRATCH/pinned/dotgraft"
  names() { sed -nE 's/^  ([a-z]+): \{repository: .*/\1/p' $CHART/values.yaml; }
  if names | tail -n +2 | sed "s/\$/ $digest/" | deploy/release/pin.sh "$SCRATCH/pinned/dotgraft" 2>"$SCRATCH/err"; then bad "an image without a digest is released"; fi
  rm -r "$SCRATCH/pinned/dotgraft" && cp -rL "$CHART" "$SCRATCH/pinned/dotgraft"
  names | sed "s/\$/ $digest/" | deploy/release/pin.sh "$SCRATCH/pinned/dotgraft" || bad "deploy/release/pin.sh"
  helm template r "$SCRATCH/pinned/dotgraft" --set pool.file.size=1Gi --api-versions snapshot.storage.k8s.io/v1 >"$SCRATCH/out" || { bad "helm template of the pinned chart"; troubles; }
  name=$(grep -E '^ *(- )?image: ' "$SCRATCH/out" | grep -vc "@$digest")
  [ "$name" = 0 ] || { bad "an image of the pinned chart has no digest"; grep -E '^ *image: ' "$SCRATCH/out" >&2; }
  [ "$(grep -cE '^ *(- )?image: ' "$SCRATCH/out")" -ge 6 ] || bad "the pinned chart lacks images"
  [ "$(charts/fingerprint.sh "$SCRATCH/pinned/dotgraft" --show)" != "$(charts/fingerprint.sh $CHART --show)" ] || bad "digests are no part of the fingerprint"
  say "a release's chart starts its images by digest"
}

# A package holds what the links of the source point to.
check_package() {
  helm package "$CHART" --destination "$SCRATCH" >/dev/null || { bad "helm package"; return; }
  tar -tzf "$SCRATCH"/dotgraft-*.tgz >"$SCRATCH/files"
  local want have
  want=$(find crds -name '*.yaml' | wc -l)
  have=$(grep -c '^dotgraft/crds/.*\.yaml$' "$SCRATCH/files")
  [ "$want" = "$have" ] || bad "the package has $have of $want CRDs"
  ! grep -E '^dotgraft/deploy/(image|samples|programs)/' "$SCRATCH/files" >&2 || bad "the package has what .helmignore names"
  say "the package is whole ($have CRDs)"
}

# Where there is no webhook nothing is left of it: a configuration without a server costs each pod a second.
check_webhook() {
  local off
  for off in webhook.enabled csi.enabled; do
    template --set pool.file.size=1Gi --set $off=false --set networkPolicy.enabled=true || { bad "helm template $off=false"; continue; }
    ! grep -nE 'MutatingWebhookConfiguration|--webhook|name: webhook' "$SCRATCH/out" >&2 || bad "$off=false leaves something of the webhook"
  done
  say "the webhook can be left out"
}

# What a StorageClass is to carry, it carries.
check_classes() {
  template --set pool.file.size=1Gi --set 'storageClasses[0].name=a,storageClasses[0].labels.team=b,storageClasses[0].annotations.note=c' \
    --show-only templates/storageclasses.yaml || { bad "helm template storageClasses"; return; }
  local line
  for line in "team: b" "note: c" "name: a"; do grep -q "^  *$line\$" "$SCRATCH/out" || bad "the StorageClass lacks $line"; done
  say "StorageClasses carry their labels and annotations"
}

# Every flag that the chart gives is one that the program knows.
check_flags() {
  local program container help flag unknown
  template --set pool.file.size=1Gi --set volumeSnapshotClass.create=true || return
  template --set pool.device=/dev/sdb --show-only templates/agent.yaml && cp "$SCRATCH/out" "$SCRATCH/device"
  template --set pool.file.size=1Gi --set volumeSnapshotClass.create=true
  cat "$SCRATCH/device" >>"$SCRATCH/out"
  for container in operator agent provisioner attacher resizer snapshotter; do
    case $container in
      operator|agent) program=${DOTGRAFT_BIN_DIR:-/nowhere}/dotgraft-$container ;;
      *) program=$TOOLS/csi-$container ;;
    esac
    if [ ! -x "$program" ]; then skip "flags of $container: its program is not built"; continue; fi
    help=$("$program" --help 2>&1)
    unknown=no
    for flag in $(awk -v c="$container" '/^ *- name: / {in_c = ($3 == c)} in_c && /^ *- --/ {print $2}' "$SCRATCH/out" | sed 's/=.*//' | sort -u); do
      # Go prints one dash.
      grep -qE -- "(^|[ ,])-?${flag#-}([ =,]|$)" <<<"$help" || { bad "$container has no flag $flag"; unknown=yes; }
    done
    [ "$unknown" = yes ] || say "flags of $container are known"
  done
}

# The chart starts the sidecars that the tests ran.
check_sidecars() {
  local file flag
  for file in csi-provisioner csi-attacher csi-resizer csi-snapshotter; do
    flag=$(sed -n "s/^ *\"$file [^ ]* [^ ]* \(v[0-9.]*\)\".*/\1/p" e2e/tools.sh)
    [ -z "$flag" ] || grep -q "sig-storage/$file, tag: $flag," $CHART/values.yaml || bad "values.yaml has another $file than e2e/tools.sh ($flag)"
  done
}

check_alerts() {
  local metric base
  if [ -x "$PROMTOOL" ]; then
    "$PROMTOOL" check rules $CHART/files/alerts.yaml >"$SCRATCH/out" 2>&1 || { bad "promtool check rules"; cat "$SCRATCH/out" >&2; }
    "$PROMTOOL" test rules charts/tests/alerts_test.yaml >"$SCRATCH/out" 2>&1 || { bad "promtool test rules"; cat "$SCRATCH/out" >&2; }
    say "the alerts fire and clear as their tests say"
  else
    skip "tests of the alerts: promtool is missing (Debian: prometheus)"
  fi
  for metric in $(grep -ohE 'dotgraft_[a-z_]+' $CHART/files/alerts.yaml $CHART/files/dashboard.json | sort -u); do
    base=$(sed -E 's/^dotgraft_(operator_)?//; s/_(bucket|count|sum)$//; s/_total$//' <<<"$metric")
    grep -qE "\"(${base}|${base%_bytes}|${base%_seconds})\"" node-agent/src/metrics.rs operator/src/metrics.rs || bad "no program has the metric $metric"
  done
  for metric in $(sed -n 's/.*- alert: //p' $CHART/files/alerts.yaml); do
    grep -qF "<a id=\"${metric,,}\"></a>" docs/runbook.md || bad "docs/runbook.md has no place for the alert $metric"
    awk -v a="$metric" '$0 ~ "- alert: " a "$" {on = 1; next} /- alert:/ {on = 0} on && /runbook_url:/ {found = 1} END {exit !found}' $CHART/files/alerts.yaml ||
      bad "the alert $metric has no runbook_url"
  done
}

# README.md of the chart has every value. Keys of lists and of resources are described in their line.
check_readme() {
  local key
  for key in $(awk '/^[^#]/ && /^ *[a-zA-Z]+:/ {d = match($0, /[^ ]/) - 1; split($1, a, ":"); p[d / 2] = a[1]; s = p[0]; for (i = 1; i <= d / 2; i++) s = s "." p[i]; print s}' $CHART/values.yaml); do
    case $key in
      pool|pool.file|crds|csi|webhook|images|operator|agent|operator.http|agent.http|*.podDisruptionBudget|volumeSnapshotClass|networkPolicy|serviceMonitor|prometheusRule|dashboard|test) continue ;;
      storageClasses.*|*.requests|*.limits|operator.resources.*|*.nodeSelector.*|*.labels.*|*.tolerations.*) continue ;;
    esac
    grep -qF "\`$key\`" $CHART/README.md || bad "README.md of the chart says nothing of $key"
  done
}

if [ -x "$HELM" ]; then
  check_values
  check_deploy
  check_package
  check_webhook
  check_classes
  check_defaults
  check_pinned
  check_flags
else
  skip "what helm renders: helm is missing (e2e/tools.sh $TOOLS helm builds it)"
fi
check_sidecars
check_alerts
check_readme
exit $failed
