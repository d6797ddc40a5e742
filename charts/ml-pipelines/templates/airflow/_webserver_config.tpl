{{/*
Where the page's own configuration (airflow.webserver.webserverConfig) is mounted. This takes the
place of the official chart's template, which has it in Airflow's home: an Airflow that finds no
such file writes one, and the home is read-only.
*/}}
{{- define "airflow_webserver_config_path" -}}
{{ .Values.config.webserver.config_file }}
{{- end }}
