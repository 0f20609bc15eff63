{{/* Labels of everything. */}}
{{- define "dotgraft.labels" -}}
app.kubernetes.io/name: dotgraft
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dotgraft
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels by which pods are found; they never change. Call with (list . "operator"). */}}
{{- define "dotgraft.selector" -}}
app.kubernetes.io/name: dotgraft
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* metadata of an object: (list . NAME COMPONENT), and optionally extra annotations and labels, each as a dict. */}}
{{- define "dotgraft.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
{{ include "dotgraft.metadata.rest" . | trim }}
{{- end }}

{{/* The same, of an object without a namespace. */}}
{{- define "dotgraft.metadata.cluster" -}}
name: {{ index . 1 }}
{{ include "dotgraft.metadata.rest" . | trim }}
{{- end }}

{{- define "dotgraft.metadata.rest" -}}
{{- $root := index . 0 -}}
{{- $labels := dict -}}
{{- if gt (len .) 4 }}{{ $labels = index . 4 | default dict }}{{- end }}
{{- $annotations := $root.Values.commonAnnotations -}}
{{- if gt (len .) 3 }}{{ $annotations = merge (deepCopy (index . 3)) $annotations }}{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "dotgraft.labels" $root | nindent 2 }}
  {{- with index . 2 }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with $labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* An image's reference: (list . NAME). By digest if one is given. */}}
{{- define "dotgraft.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "dotgraft.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* "true" if the snapshotter runs: there is nothing to watch where the cluster lacks the kinds. */}}
{{- define "dotgraft.snapshots" -}}
{{- $create := toString .Values.volumeSnapshotClass.create -}}
{{- if and .Values.csi.enabled (or (eq $create "true") (and (eq $create "auto") (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1"))) -}}true{{- end -}}
{{- end }}

{{/* "true" if pods are shown to the operator. */}}
{{- define "dotgraft.webhook" -}}
{{- if and .Values.csi.enabled .Values.webhook.enabled -}}true{{- end -}}
{{- end }}

{{/* Which defaults this chart's values.yaml has; charts/check.sh says what to write here and there. */}}
{{- define "dotgraft.defaults" -}}eebeea53{{- end }}

{{/* Ends an upgrade that goes on with the defaults of another version: it would lack new keys, and start the sidecars of then with the flags of now. */}}
{{- define "dotgraft.own" -}}
{{- if ne (toString .Values.defaults) (include "dotgraft.defaults" .) -}}
{{- fail "these are defaults of another version of the chart: upgrade with --reset-then-reuse-values instead of --reuse-values, or with -f and a file of only what you changed" -}}
{{- end -}}
{{- end }}

{{/* The pool's arguments of the agent. */}}
{{- define "dotgraft.pool" -}}
{{- with .Values.pool -}}
{{- if and .device .file.size -}}
{{- fail "set one of pool.device and pool.file.size, not both" -}}
{{- else if .device -}}
- --pool-device={{ .device }}
{{- else if .file.size -}}
{{- if lt (include "dotgraft.gibibytes" .file.size | float64) 1.0 -}}
{{- fail (printf "pool.file.size is %s: a pool has at least 1Gi" .file.size) -}}
{{- end -}}
- --pool-file={{ .file.path }}
- --pool-file-size={{ .file.size }}
{{- else -}}
{{- fail "say where the data lives: set pool.device (a block device of each node) or pool.file.size (for example 100Gi: a file on each node)" -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A Kubernetes quantity in GiB. */}}
{{- define "dotgraft.gibibytes" -}}
{{- $units := dict "Ki" 9.5367431640625e-07 "Mi" 0.0009765625 "Gi" 1.0 "Ti" 1024.0 "Pi" 1048576.0 "Ei" 1073741824.0 -}}
{{- $units = merge $units (dict "k" 9.313225746154785e-07 "M" 0.0009313225746154785 "G" 0.9313225746154785 "T" 931.3225746154785) -}}
{{- $units = merge $units (dict "P" 931322.5746154785 "E" 931322574.6154785 "" 9.313225746154785e-10) -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .)) -}}
{{- end }}

{{/* The agent has the node's network: its ports must be different ones. */}}
{{- define "dotgraft.ports" -}}
{{- $ports := dict -}}
{{- $agent := dict "agent.peerPort" .Values.agent.peerPort "agent.http.port" .Values.agent.http.port "agent.probePort" .Values.agent.probePort -}}
{{- range $name, $port := $agent -}}
{{- $port = toString (int $port) -}}
{{- if hasKey $ports $port }}{{ fail (printf "%s and %s are both %s" (get $ports $port) $name $port) }}{{ end -}}
{{- $_ := set $ports $port $name -}}
{{- end -}}
{{- if and (include "dotgraft.webhook" .) (eq (int .Values.webhook.port) (int .Values.operator.http.port)) -}}
{{- fail (printf "webhook.port and operator.http.port are both %d" (int .Values.webhook.port)) -}}
{{- end -}}
{{- end }}
