{{/* Where tasks may run, as a JSON list: the release's namespace, then the others. */}}
{{- define "ml-pipelines.namespaces" -}}
{{- prepend .Values.pipelines.namespaces .Release.Namespace | toJson -}}
{{- end }}

{{/*
Rights in a namespace of tasks, by account and nothing more: [{name, account, rules}] as YAML. In the
release's own namespace the official chart's roles `pod-launcher` and `pod-log-reader` say the same
for workers, scheduler and triggerer. The webserver reads the logs of workers, which run there. Call
with (list . namespace).
*/}}
{{- define "ml-pipelines.tasks.roles" -}}
{{- $root := index . 0 -}}
{{- $name := include "ml-pipelines.fullname" $root -}}
{{- $airflow := $root.Subcharts.airflow -}}
{{- $elsewhere := ne (index . 1) $root.Release.Namespace -}}
{{- $processor := $root.Values.airflow.dagProcessor.enabled -}}
{{- if $elsewhere }}
- name: {{ $name }}-pod-launcher
  account: {{ include "worker.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [create, delete, get, list, patch, watch]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
    # Results that a sidecar hands over.
    - apiGroups: [""]
      resources: [pods/exec]
      verbs: [create, get]
    # Why a pod does not start.
    - apiGroups: [""]
      resources: [events]
      verbs: [list]
{{- end }}
{{- if or $elsewhere $processor }}
# The DAG processor deletes the pod of a worker that has died in its last try. It runs beside the
# scheduler if it has no pod of its own.
- name: {{ $name }}-pod-ender
  account: {{ include (ternary "dagProcessor" "scheduler" $processor | printf "%s.serviceAccountName") $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [delete, list]
{{- end }}
{{- if and $elsewhere $root.Values.airflow.triggerer.enabled }}
- name: {{ $name }}-pod-watcher
  account: {{ include "triggerer.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [get, list, watch]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
{{- end }}
{{- end }}
