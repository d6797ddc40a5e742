{{/*
Names. Every object is named here and nowhere else.

The chart's own name stands as a word, not as .Chart.Name: these helpers are also called from
values that the official chart evaluates (airflow.scheduler.extraVolumes, ...), where .Chart and
.Values are the official chart's.
*/}}

{{/* Prefix of the objects: the release's name, with the chart's name unless it is in there. */}}
{{- define "ml-pipelines.fullname" -}}
{{- if contains "ml-pipelines" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-ml-pipelines" (.Release.Name | trunc 27 | trimSuffix "-") -}}
{{- end -}}
{{- end }}

{{- define "ml-pipelines.settings.name" -}}
{{ include "ml-pipelines.fullname" . }}-settings
{{- end }}

{{- define "ml-pipelines.environment.name" -}}
{{ include "ml-pipelines.fullname" . }}-environment
{{- end }}

{{- define "ml-pipelines.tasks.name" -}}
{{ include "ml-pipelines.fullname" . }}-task
{{- end }}

{{/* The account of the chart's own pods. */}}
{{- define "ml-pipelines.pods.accountName" -}}
{{- .Values.pods.serviceAccount.name | default (printf "%s-pod" (include "ml-pipelines.fullname" .)) -}}
{{- end }}

{{- define "ml-pipelines.postgres.name" -}}
{{ include "ml-pipelines.fullname" . }}-postgres
{{- end }}

{{- define "ml-pipelines.mlflow.name" -}}
{{ include "ml-pipelines.fullname" . }}-mlflow
{{- end }}

{{- define "ml-pipelines.setup.name" -}}
{{ include "ml-pipelines.fullname" . }}-setup
{{- end }}

{{- define "ml-pipelines.storage.check.name" -}}
{{ include "ml-pipelines.fullname" . }}-storage
{{- end }}

{{- define "ml-pipelines.logs.check.name" -}}
{{ include "ml-pipelines.fullname" . }}-logs
{{- end }}

{{- define "ml-pipelines.janitor.name" -}}
{{ include "ml-pipelines.fullname" . }}-janitor
{{- end }}

{{- define "ml-pipelines.janitor.pods.name" -}}
{{ include "ml-pipelines.fullname" . }}-pod-janitor
{{- end }}

{{- define "ml-pipelines.janitor.database.name" -}}
{{ include "ml-pipelines.fullname" . }}-database-janitor
{{- end }}

{{/* Of what the Prometheus Operator reads. */}}
{{- define "ml-pipelines.metrics.name" -}}
{{ include "ml-pipelines.fullname" . }}
{{- end }}

{{- define "ml-pipelines.metrics.dashboard.name" -}}
{{ include "ml-pipelines.fullname" . }}-dashboard
{{- end }}

{{- define "ml-pipelines.test.name" -}}
{{ include "ml-pipelines.fullname" . }}-test
{{- end }}

{{/* The Secret that holds the password of the first user. */}}
{{- define "ml-pipelines.admin.secretName" -}}
{{- .Values.admin.existingSecret | default (printf "%s-admin" (include "ml-pipelines.fullname" .)) -}}
{{- end }}

{{/* The Secret that holds the Weights & Biases key. */}}
{{- define "ml-pipelines.wandb.secretName" -}}
{{- .Values.wandb.existingSecret | default (printf "%s-wandb" (include "ml-pipelines.fullname" .)) -}}
{{- end }}

{{/* The Secret that holds the password of the local Postgres. */}}
{{- define "ml-pipelines.postgres.secretName" -}}
{{- .Values.postgres.existingSecret | default .Values.airflow.data.metadataSecretName -}}
{{- end }}

{{/* Service of the Airflow page, named by the official chart. */}}
{{- define "ml-pipelines.webserver.name" -}}
{{ include "airflow.fullname" .Subcharts.airflow }}-webserver
{{- end }}
