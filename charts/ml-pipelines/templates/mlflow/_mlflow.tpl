{{/*
Host headers that the server answers; it refuses others since MLflow 3.5, so that a web page
cannot reach it by a DNS name of its own. localhost is for port-forwarding.
*/}}
{{- define "ml-pipelines.mlflow.allowedHosts" -}}
{{- $name := include "ml-pipelines.mlflow.name" . -}}
{{- $hosts := list "localhost" "127.0.0.1" "localhost:*" "127.0.0.1:*" -}}
{{- range list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- $hosts = concat $hosts (list . (printf "%s:5000" .)) -}}
{{- end -}}
{{- concat $hosts .Values.mlflow.allowedHosts | join "," -}}
{{- end }}

{{/* Address of the MLflow server: the release's own, else the one elsewhere, else nothing. */}}
{{- define "ml-pipelines.mlflow.uri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "ml-pipelines.mlflow.name" . }}:5000
{{- else -}}
{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end }}
