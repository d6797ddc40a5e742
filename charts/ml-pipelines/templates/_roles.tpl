{{/*
A Role in a namespace and its binding to an account of the release's namespace. Call with
(list . "component" namespace {name, account, rules}).
*/}}
{{- define "ml-pipelines.role" -}}
{{- $root := index . 0 -}}
{{- $role := index . 3 }}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $role.name }}
  namespace: {{ index . 2 }}
  labels:
    {{- include "ml-pipelines.labels" (list $root (index . 1)) | nindent 4 }}
rules:
  {{- toYaml $role.rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $role.name }}
  namespace: {{ index . 2 }}
  labels:
    {{- include "ml-pipelines.labels" (list $root (index . 1)) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $role.name }}
subjects:
  - kind: ServiceAccount
    name: {{ $role.account }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
