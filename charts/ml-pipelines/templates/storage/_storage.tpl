{{/* Class of the training storage. A static volume needs one that nothing provisions for. */}}
{{- define "ml-pipelines.storage.className" -}}
{{- if .Values.storage.local.path -}}
{{ .Values.storage.storageClassName | default "local-storage" }}
{{- else -}}
{{ .Values.storage.storageClassName }}
{{- end -}}
{{- end }}
