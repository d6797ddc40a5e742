{{/*
Environment of every Airflow container from objects, in place of the official chart's template: that
one knows its own values only, and airflow.extraEnvFrom may be set without losing what is ours.
*/}}
{{- define "custom_airflow_environment_from" }}
  - configMapRef:
      name: {{ include "ml-pipelines.environment.name" . }}
  {{- $root := . }}
  {{- with .Values.extraEnvFrom }}
    {{- tpl . $root | nindent 2 }}
  {{- end }}
{{- end }}
