{{/*
Secrets that are drawn once and kept.

`lookup` finds what the cluster holds already, so that an upgrade or a reinstall changes nothing.
It finds nothing under `helm template` and in tools that render without a cluster (Argo CD): there
every render would draw anew. With profile shared that is refused.
*/}}

{{/*
"true" when there is a cluster to look into. The list of Secrets is what every Helm may read, as its
own records are Secrets; without a cluster there is no list, not an empty one.
*/}}
{{- define "ml-pipelines.hasCluster" -}}
{{- with lookup "v1" "Secret" .Release.Namespace "" -}}true{{- end -}}
{{- end }}

{{/* The Secrets that a render without a cluster would draw anew, one message a line. */}}
{{- define "ml-pipelines.problems.drawn" -}}
{{- $ways := list -}}
{{- if and .Values.admin.enabled (not .Values.admin.existingSecret) -}}
{{- $ways = append $ways (printf "admin.existingSecret: make a Secret with the key %s and name it here" .Values.admin.secretKey) -}}
{{- end -}}
{{- range $value, $secret := dict "fernetKey" (list .Values.airflow.fernetKeySecretName "fernet-key") "webserverSecretKey" (list .Values.airflow.webserverSecretKeySecretName (include "ml-pipelines.airflow3" . | empty | ternary "webserver-secret-key" "webserver-secret-key and the key jwt-secret")) -}}
{{- if (index $.Values.secrets $value).create -}}
{{- $ways = append $ways (printf "secrets.%s.create: make Secret %s with the key %s and set this to false" $value (first $secret) (last $secret)) -}}
{{- end -}}
{{- end -}}
{{- if and $ways (not (include "ml-pipelines.hasCluster" .)) -}}
{{- range $ways }}
{{ . }}; rendered without a cluster (helm template, Argo CD, --dry-run=client) it would be drawn anew each time
{{- end -}}
{{- end -}}
{{- end }}

{{/* Base64 of one key of a Secret of the release's namespace, or nothing: (list . name key). */}}
{{- define "ml-pipelines.kept" -}}
{{- $root := index . 0 -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace (index . 1 | default "none") -}}
{{- dig "data" (index . 2) "" ($secret | default dict) -}}
{{- end }}

{{/* Fernet wants 32 random bytes in the URL-safe alphabet. */}}
{{- define "ml-pipelines.newFernetKey" -}}
{{- randBytes 32 | replace "+" "-" | replace "/" "_" -}}
{{- end }}
