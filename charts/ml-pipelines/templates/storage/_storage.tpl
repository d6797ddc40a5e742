{{/* Class of the training storage. A static volume needs one that nothing provisions for. */}}
{{- define "ml-pipelines.storage.className" -}}
{{- if .Values.storage.local.path -}}
{{ .Values.storage.storageClassName | default "local-storage" }}
{{- else -}}
{{ .Values.storage.storageClassName }}
{{- end -}}
{{- end }}

{{/* The static volume of a namespace's claim: (list . namespace). */}}
{{- define "ml-pipelines.storage.volumeName" -}}
{{- $root := index . 0 -}}
{{- $root.Values.storage.local.volumeName -}}
{{- if ne $root.Release.Namespace (index . 1) -}}
-{{ index . 1 }}
{{- end -}}
{{- end }}
