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

{{/* metadata of an object: (list . NAME COMPONENT), and optionally extra annotations as a dict. */}}
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

{{/* The pool's arguments of the agent. */}}
{{- define "dotgraft.pool" -}}
{{- with .Values.pool -}}
{{- if and .device .file.size -}}
{{- fail "set one of pool.device and pool.file.size, not both" -}}
{{- else if .device -}}
- --pool-device={{ .device }}
{{- else if .file.size -}}
- --pool-file={{ .file.path }}
- --pool-file-size={{ .file.size }}
{{- else -}}
{{- fail "say where the data lives: set pool.device (a block device of each node) or pool.file.size (for example 100Gi: a file on each node)" -}}
{{- end -}}
{{- end -}}
{{- end }}
