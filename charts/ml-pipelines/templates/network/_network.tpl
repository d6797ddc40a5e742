{{/*
A NetworkPolicy: (list . "component" namespace "name" spec as text). The name is that of the pods it
is about.
*/}}
{{- define "ml-pipelines.network.policy" -}}
{{- $root := index . 0 }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "ml-pipelines.fullname" $root }}-{{ index . 3 }}
  namespace: {{ index . 2 }}
  labels:
    {{- include "ml-pipelines.labels" (list $root (index . 1)) | nindent 4 }}
spec:
  {{- index . 4 | trim | nindent 2 }}
{{- end }}

{{/* Pods of ours, by component: (list . "component" ...). */}}
{{- define "ml-pipelines.network.own" -}}
{{- $root := first . -}}
matchLabels:
  app.kubernetes.io/name: ml-pipelines
  app.kubernetes.io/instance: {{ $root.Release.Name }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: {{ rest . | toJson }}
{{- end }}

{{/* Pods of the official chart, by component: (list . "component" ...). */}}
{{- define "ml-pipelines.network.airflow" -}}
{{- $root := first . -}}
matchLabels:
  tier: airflow
  release: {{ $root.Release.Name }}
matchExpressions:
  - key: component
    operator: In
    values: {{ rest . | toJson }}
{{- end }}

{{/* Every task pod, also of a stock KubernetesPodOperator: the operator writes this label. */}}
{{- define "ml-pipelines.network.tasks" -}}
matchLabels:
  kubernetes_pod_operator: "True"
{{- end }}

{{/* What tasks reach, and the janitor on its way to the registry, as egress rules. */}}
{{- define "ml-pipelines.network.outbound" -}}
# Where DNS is differs: pods, an address of the node.
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- if .Values.mlflow.enabled }}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Release.Namespace }}
      podSelector:
        {{- include "ml-pipelines.network.own" (list . "mlflow") | nindent 8 }}
  ports:
    - {protocol: TCP, port: 5000}
{{- end }}
{{- with .Values.networkPolicies.egress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* In each namespace of tasks. */}}
{{- define "ml-pipelines.network.closed" -}}
# Nobody asks anything of these.
podSelector:
  matchLabels:
    app.kubernetes.io/name: ml-pipelines
    app.kubernetes.io/instance: {{ .Release.Name }}
policyTypes: [Ingress]
{{- end }}

{{- define "ml-pipelines.network.volumes" -}}
# And these ask nothing of anybody: a volume is the kubelet's business.
podSelector:
  {{- include "ml-pipelines.network.own" (list . "storage" "logs" "postgres" "mlflow") | nindent 2 }}
policyTypes: [Ingress, Egress]
{{- end }}

{{- define "ml-pipelines.network.janitor" -}}
podSelector:
  {{- include "ml-pipelines.network.own" (list . "janitor") | nindent 2 }}
policyTypes: [Ingress, Egress]
egress:
  {{- include "ml-pipelines.network.outbound" . | nindent 2 }}
{{- end }}

{{- define "ml-pipelines.network.task" -}}
# What runs in these is somebody's training code.
podSelector:
  {{- include "ml-pipelines.network.tasks" . | nindent 2 }}
policyTypes: [Ingress, Egress]
egress:
  {{- include "ml-pipelines.network.outbound" . | nindent 2 }}
{{- end }}

{{/* In the release's namespace. */}}
{{- define "ml-pipelines.network.workers" -}}
# The official chart has policies for its other parts.
podSelector:
  {{- include "ml-pipelines.network.airflow" (list . "worker" "dag-processor" "airflow-cleanup-pods") | nindent 2 }}
policyTypes: [Ingress]
{{- end }}

{{- define "ml-pipelines.network.webserver" -}}
podSelector:
  {{- include "ml-pipelines.network.airflow" (list . "webserver") | nindent 2 }}
policyTypes: [Ingress]
ingress:
  - from:
      - podSelector:
          {{- include "ml-pipelines.network.own" (list . "test") | nindent 10 }}
      {{- if include "ml-pipelines.airflow3" . }}
      # It is the API server: tasks report to it, and what runs or reads DAGs asks it.
      - podSelector:
          {{- include "ml-pipelines.network.airflow" (list . "scheduler" "triggerer" "worker" "dag-processor") | nindent 10 }}
      {{- end }}
      {{- with .Values.networkPolicies.ingress }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    ports:
      - {protocol: TCP, port: {{ .Values.airflow.ports.airflowUI }}}
{{- end }}

{{- define "ml-pipelines.network.mlflow" -}}
podSelector:
  {{- include "ml-pipelines.network.own" (list . "mlflow") | nindent 2 }}
policyTypes: [Ingress]
ingress:
  - from:
      - podSelector:
          {{- include "ml-pipelines.network.own" (list . "janitor" "test") | nindent 10 }}
      {{- range $namespace := include "ml-pipelines.namespaces" . | fromJsonArray }}
      - namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: {{ $namespace }}
        podSelector:
          {{- include "ml-pipelines.network.tasks" $ | nindent 10 }}
      {{- end }}
      {{- with .Values.networkPolicies.ingress }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    ports:
      - {protocol: TCP, port: 5000}
{{- end }}

{{- define "ml-pipelines.network.postgres" -}}
podSelector:
  {{- include "ml-pipelines.network.own" (list . "postgres") | nindent 2 }}
policyTypes: [Ingress]
ingress:
  - from:
      - podSelector:
          {{- include "ml-pipelines.network.airflow" (list . "scheduler" "webserver" "triggerer" "worker" "dag-processor" "pgbouncer") | nindent 10 }}
      - podSelector:
          {{- include "ml-pipelines.network.own" (list . "setup" "database-janitor") | nindent 10 }}
    ports:
      - {protocol: TCP, port: 5432}
{{- end }}

{{- define "ml-pipelines.network.statsd" -}}
# Beside the official policy, which lets Airflow's pods in.
podSelector:
  {{- include "ml-pipelines.network.airflow" (list . "statsd") | nindent 2 }}
policyTypes: [Ingress]
ingress:
  - from:
      {{- toYaml .Values.networkPolicies.scrapers | nindent 6 }}
    ports:
      - {protocol: TCP, port: {{ .Values.airflow.ports.statsdScrape }}}
{{- end }}
