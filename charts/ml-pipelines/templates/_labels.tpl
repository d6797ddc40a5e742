{{/*
Labels. Call with (list . "component").
*/}}

{{- define "ml-pipelines.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: ml-pipelines
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Of pods: without the version, which would restart them at every release. */}}
{{- define "ml-pipelines.podLabels" -}}
{{ include "ml-pipelines.selectorLabels" . }}
app.kubernetes.io/part-of: ml-pipelines
{{- end }}

{{- define "ml-pipelines.labels" -}}
{{- $root := index . 0 -}}
{{ include "ml-pipelines.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}
