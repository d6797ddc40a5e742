{{/*
Secrets that are drawn once and kept.

`lookup` finds what the cluster holds already, so that an upgrade or a reinstall changes nothing.
It finds nothing under `helm template` and in tools that render without a cluster (Argo CD, helm
diff): there every render draws anew, and existing Secrets are the way to go.
*/}}

{{/* Base64 of one key of a Secret of the release's namespace, or nothing: (list . name key). */}}
{{- define "ml-pipelines.kept" -}}
{{- $root := index . 0 -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace (index . 1) -}}
{{- dig "data" (index . 2) "" ($secret | default dict) -}}
{{- end }}

{{/* Fernet wants 32 random bytes in the URL-safe alphabet. */}}
{{- define "ml-pipelines.newFernetKey" -}}
{{- randBytes 32 | replace "+" "-" | replace "/" "_" -}}
{{- end }}
