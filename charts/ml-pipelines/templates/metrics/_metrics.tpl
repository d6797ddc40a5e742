{{/* Service of the exporter, named by the official chart. */}}
{{- define "ml-pipelines.metrics.service" -}}
{{ include "airflow.fullname" .Subcharts.airflow }}-statsd
{{- end }}

{{/* Labels that Prometheus gives to what it scrapes of this release, as a part of a query. */}}
{{- define "ml-pipelines.metrics.selector" -}}
namespace={{ .Release.Namespace | quote }},job={{ include "ml-pipelines.metrics.service" . | quote }}
{{- end }}

{{/* Labels of an object that something finds by more than ours: (list . more). */}}
{{- define "ml-pipelines.metrics.labels" -}}
{{ include "ml-pipelines.labels" (list (index . 0) "metrics") }}
{{- with index . 1 }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The dashboard as Grafana's JSON: two panels of files/dashboard.yaml a row. */}}
{{- define "ml-pipelines.metrics.dashboard" -}}
{{- $source := dict "type" "prometheus" "uid" "${source}" -}}
{{- $panels := list -}}
{{- range $index, $panel := .Files.Get "files/dashboard.yaml" | fromYamlArray -}}
{{- $targets := list -}}
{{- range $legend, $query := $panel.queries -}}
{{- $expr := $query | replace "RELEASE" (include "ml-pipelines.metrics.selector" $) -}}
{{- $targets = append $targets (dict "datasource" $source "expr" $expr "legendFormat" $legend "refId" (printf "q%d" (len $targets))) -}}
{{- end -}}
{{- $panels = append $panels (dict
      "id" (add1 $index)
      "type" "timeseries"
      "title" $panel.title
      "datasource" $source
      "fieldConfig" (dict "defaults" (dict "unit" $panel.unit "min" 0) "overrides" list)
      "gridPos" (dict "h" 8 "w" 12 "x" (mul 12 (mod $index 2)) "y" (mul 8 (div $index 2)))
      "targets" $targets) -}}
{{- end -}}
{{- $variable := dict "name" "source" "label" "Prometheus" "type" "datasource" "query" "prometheus" -}}
{{- dict
      "title" (printf "ML pipelines: %s" .Release.Name)
      "uid" (printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 16)
      "tags" (list "airflow" "ml-pipelines")
      "schemaVersion" 38
      "time" (dict "from" "now-24h" "to" "now")
      "refresh" "1m"
      "templating" (dict "list" (list $variable))
      "panels" $panels | toPrettyJson -}}
{{- end }}
