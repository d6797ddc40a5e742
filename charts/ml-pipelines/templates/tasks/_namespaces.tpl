{{/* Where tasks may run, as a JSON list: the release's namespace, then the others. */}}
{{- define "ml-pipelines.namespaces" -}}
{{- prepend .Values.pipelines.namespaces .Release.Namespace | toJson -}}
{{- end }}

{{/*
Rights in a namespace, by account and nothing more: [{name, account, rules}] as YAML. They are the
verbs that Airflow 2.9.3 calls with its provider 8.3.3, in place of the official chart's roles
(airflow.rbac.create), which give scheduler and workers the same. Workers run in the release's
namespace, tasks in each. Call with (list . namespace).
*/}}
{{- define "ml-pipelines.tasks.roles" -}}
{{- $root := index . 0 -}}
{{- $name := include "ml-pipelines.fullname" $root -}}
{{- $airflow := $root.Subcharts.airflow -}}
{{- $here := eq (index . 1) $root.Release.Namespace -}}
{{- $processor := $root.Values.airflow.dagProcessor.enabled }}
# Workers start the pods of tasks.
- name: {{ $name }}-pod-launcher
  account: {{ include "worker.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [create, delete, get, list, patch, watch]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
    # Results that a sidecar hands over. get is the verb of a websocket, create that of newer servers.
    - apiGroups: [""]
      resources: [pods/exec]
      verbs: [create, get]
    # Why a pod does not start.
    - apiGroups: [""]
      resources: [events]
      verbs: [list]
{{- if $root.Values.airflow.triggerer.enabled }}
- name: {{ $name }}-pod-watcher
  account: {{ include "triggerer.serviceAccountName" $airflow }}
  rules:
    {{- if eq (include "ml-pipelines.launch" $root) "triggerer" }}
    # It starts and follows the pods of tasks itself.
    - apiGroups: [""]
      resources: [pods]
      verbs: [create, delete, get, list, patch, watch]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
    - apiGroups: [""]
      resources: [events]
      verbs: [list]
    {{- else }}
    - apiGroups: [""]
      resources: [pods]
      verbs: [get]
    {{- end }}
{{- end }}
{{- if or $processor (not $here) }}
# The DAG processor deletes the pod of a worker that has died in its last try. It runs beside the
# scheduler if it has no pod of its own.
- name: {{ $name }}-pod-ender
  account: {{ include (ternary "dagProcessor" "scheduler" $processor | printf "%s.serviceAccountName") $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [delete, list]
{{- end }}
{{- if $here }}
# The scheduler starts the workers.
- name: {{ $name }}-worker-launcher
  account: {{ include "scheduler.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [create, delete, list, patch, watch]
# The page shows the log of a worker that still runs.
- name: {{ $name }}-worker-reader
  account: {{ include "webserver.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [list]
    - apiGroups: [""]
      resources: [pods/log]
      verbs: [get]
{{- if $root.Values.airflow.cleanup.enabled }}
- name: {{ $name }}-cleanup
  account: {{ include "cleanup.serviceAccountName" $airflow }}
  rules:
    - apiGroups: [""]
      resources: [pods]
      verbs: [delete, list]
{{- end }}
{{- end }}
{{- end }}
