{{/*
Images of the official chart, with global.imageRegistry. These take the place of its own templates:
Helm prefers the parent chart's. Each names what the original names.
*/}}
{{- define "ml-pipelines.airflowImage" -}}
{{- $v := (index . 0).Values -}}
{{- $image := index . 1 -}}
{{- include "ml-pipelines.image" (list (index . 0) (dict
      "repository" ($image.repository | default $v.defaultAirflowRepository)
      "tag" ($image.tag | default $v.defaultAirflowTag)
      "digest" $image.digest)) -}}
{{- end }}

{{- define "airflow_image" -}}
{{- $image := .Values.images.airflow -}}
{{- $digest := $image.digest | default .Values.defaultAirflowDigest -}}
{{- include "ml-pipelines.airflowImage" (list . (set (omit $image "digest") "digest" $digest)) -}}
{{- end }}

{{- define "default_airflow_image" -}}
{{- include "ml-pipelines.airflowImage" (list . (dict "digest" .Values.defaultAirflowDigest)) -}}
{{- end }}

{{- define "pod_template_image" -}}
{{- include "ml-pipelines.airflowImage" (list . (omit .Values.images.pod_template "digest")) -}}
{{- end }}

{{- define "flower_image" -}}
{{- include "ml-pipelines.airflowImage" (list . (omit .Values.images.flower "digest")) -}}
{{- end }}

{{- define "statsd_image" -}}
{{- include "ml-pipelines.image" (list . .Values.images.statsd) -}}
{{- end }}

{{- define "redis_image" -}}
{{- include "ml-pipelines.image" (list . .Values.images.redis) -}}
{{- end }}

{{- define "pgbouncer_image" -}}
{{- include "ml-pipelines.image" (list . .Values.images.pgbouncer) -}}
{{- end }}

{{- define "pgbouncer_exporter_image" -}}
{{- include "ml-pipelines.image" (list . .Values.images.pgbouncerExporter) -}}
{{- end }}

{{- define "git_sync_image" -}}
{{- include "ml-pipelines.image" (list . .Values.images.gitSync) -}}
{{- end }}
