{{/*
What values/airflow3.yaml needs. The official chart 1.13.1 evaluates it, whose values .Values are; it
knows Airflow 2, but lets its values say the rest.
*/}}

{{/* Address of the API server inside the cluster. */}}
{{- define "ml-pipelines.airflow3.api" -}}
http://{{ include "airflow.fullname" . }}-webserver.{{ .Release.Namespace }}:{{ .Values.ports.airflowUI }}{{ (urlParse .Values.config.api.base_url).path | trimSuffix "/" }}
{{- end }}

{{/* One Secret holds both: the key of the page's sessions, and the one that signs tokens. */}}
{{- define "ml-pipelines.airflow3.environment" -}}
{{- range $variable, $key := dict "AIRFLOW__API__SECRET_KEY" "webserver-secret-key" "AIRFLOW__API_AUTH__JWT_SECRET" "jwt-secret" }}
- name: {{ $variable }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.webserverSecretKeySecretName }}
      key: {{ $key }}
{{- end }}
{{- end }}

{{/*
The worker's Pod, from the official template. On Airflow 3 a worker talks to the API server alone,
with a token for its task: code of a DAG finds no login of the database and no key in it.
*/}}
{{- define "ml-pipelines.airflow3.podTemplate" -}}
{{- $pod := tpl (.Files.Get "files/pod-template-file.kubernetes-helm-yaml") . | fromYaml -}}
{{- $base := first $pod.spec.containers -}}
{{- $kept := list -}}
{{- range $base.env -}}
{{- if not (has .name (list "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" "AIRFLOW__CORE__FERNET_KEY" "AIRFLOW__API__SECRET_KEY" "AIRFLOW__API_AUTH__JWT_SECRET")) -}}
{{- $kept = append $kept . -}}
{{- end -}}
{{- end -}}
{{- $_ := set $base "env" $kept -}}
{{- toYaml $pod -}}
{{- end }}

{{/* Something on Airflow 3, nothing on 2; called with the values of our chart. */}}
{{- define "ml-pipelines.airflow3" -}}
{{- if semverCompare ">=3.0.0-0" (toString .Values.airflow.airflowVersion) -}}true{{- end -}}
{{- end }}

{{/*
What starts the pods of tasks: `worker` or `triggerer`. `auto` is the triggerer where the project's
image of Airflow 3 runs: of another image nothing says whether it has the package one_pod.
*/}}
{{- define "ml-pipelines.launch" -}}
{{- $a := .Values.airflow -}}
{{- if ne .Values.pipelines.launch "auto" -}}
{{- .Values.pipelines.launch -}}
{{- else if and (semverCompare ">=3.3.0-0" (toString $a.airflowVersion)) (regexMatch "ml-pipelines/airflow3$" $a.defaultAirflowRepository) $a.triggerer.enabled -}}
triggerer
{{- else -}}
worker
{{- end -}}
{{- end }}

{{/*
Versions that are mixed up, one message or nothing: a value of values/airflow3.yaml is there without
Airflow 3, or is lacking with it.
*/}}
{{- define "ml-pipelines.problems.airflow3" -}}
{{- $a := .Values.airflow -}}
{{- $overlay := dict
      "airflow.extraEnv" (contains "ml-pipelines.airflow3." ($a.extraEnv | default ""))
      "airflow.podTemplate" (contains "ml-pipelines.airflow3." ($a.podTemplate | default ""))
      "airflow.config.core.execution_api_server_url" (not (empty $a.config.core.execution_api_server_url))
      "airflow.config.webserver.base_url" (contains "/api/v2/monitor" ($a.config.webserver.base_url | default "")) -}}
{{- $asked := include "ml-pipelines.airflow3" . | empty | not -}}
{{- $wrong := list -}}
{{- range $key, $there := $overlay -}}
{{- if ne $there $asked -}}
{{- $wrong = append $wrong $key -}}
{{- end -}}
{{- end -}}
{{- with $wrong -}}
{{- if $asked -}}
{{- printf "airflow.airflowVersion is %s: Airflow 3 needs values/airflow3.yaml, after the file of the environment; not as there: %s (people's address is airflow.config.api.base_url)" $a.airflowVersion (join ", " .) -}}
{{- else -}}
{{- printf "airflow.airflowVersion is %s, but values of values/airflow3.yaml are there: %s; leave that file out, or its airflow.airflowVersion and airflow.defaultAirflowTag in" $a.airflowVersion (join ", " .) -}}
{{- end -}}
{{- end -}}
{{- end }}
