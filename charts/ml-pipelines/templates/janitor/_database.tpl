{{- define "ml-pipelines.janitor.database.pod" -}}
{{- $command := printf "exec airflow db clean --clean-before-timestamp \"$(date -u -d '-%v days' +%%FT%%TZ)\"" .Values.janitor.database.keepDays -}}
{{- $how := .Values.janitor.dryRun | ternary " --dry-run" " --skip-archive --yes" -}}
metadata:
  labels:
    {{- include "ml-pipelines.podLabels" (list . "database-janitor") | nindent 4 }}
    # As those of the setup Job.
    tier: airflow
    release: {{ .Release.Name }}
spec:
  {{- include "ml-pipelines.podCommon" . | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" . }}
  restartPolicy: Never
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" (int .Values.airflow.uid) "group" (int .Values.airflow.gid)) | nindent 4 }}
  containers:
    {{- include "ml-pipelines.setup.airflow" (list . "clean-database" (print $command $how)) | nindent 4 }}
  volumes:
    {{- include "ml-pipelines.setup.volumes" . | nindent 4 }}
{{- end }}
