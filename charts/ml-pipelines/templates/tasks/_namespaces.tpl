{{/* Where tasks may run, as a JSON list: the release's namespace, then the others. */}}
{{- define "ml-pipelines.namespaces" -}}
{{- prepend .Values.pipelines.namespaces .Release.Namespace | toJson -}}
{{- end }}

{{/*
Rights in a namespace of tasks, by account and nothing more: [{name, account, rules}] as YAML. In the
release's own namespace the official chart's roles `pod-launcher` and `pod-log-reader` say the same
for workers, scheduler and triggerer. The webserver reads the logs of workers, which run there.
*/}}
{{- define "ml-pipelines.tasks.roles" -}}
- name: {{ include "ml-pipelines.fullname" . }}-pod-launcher
  account: {{ include "worker.serviceAccountName" .Subcharts.airflow }}
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
# The DAG processor, which runs beside the scheduler, deletes the pod of a worker that has died in its
# last try.
- name: {{ include "ml-pipelines.fullname" . }}-pod-ender
  account: {{ include "scheduler.serviceAccountName" .Subcharts.airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [delete, list]
{{- if .Values.airflow.triggerer.enabled }}
- name: {{ include "ml-pipelines.fullname" . }}-pod-watcher
  account: {{ include "triggerer.serviceAccountName" .Subcharts.airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [get, list, watch]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
{{- end }}
{{- end }}
