{{/*
Host headers that the server answers; it refuses others since MLflow 3.5, so that a web page
cannot reach it by a DNS name of its own. localhost is for port-forwarding.
*/}}
{{- define "ml-pipelines.mlflow.allowedHosts" -}}
{{- $name := include "ml-pipelines.mlflow.name" . -}}
{{- $hosts := list "localhost" "127.0.0.1" "localhost:*" "127.0.0.1:*" -}}
{{- range list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- $hosts = concat $hosts (list . (printf "%s:5000" .)) -}}
{{- end -}}
{{- concat $hosts .Values.mlflow.allowedHosts | join "," -}}
{{- end }}

{{/* Address of the MLflow server, for all namespaces of tasks: the release's own, else the one elsewhere. */}}
{{- define "ml-pipelines.mlflow.uri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "ml-pipelines.mlflow.name" . }}.{{ .Release.Namespace }}:5000
{{- else -}}
{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end }}

{{/* Where people open its page. */}}
{{- define "ml-pipelines.mlflow.page" -}}
{{- .Values.mlflow.pageUrl | default (.Values.mlflow.enabled | ternary "http://localhost:5000" .Values.mlflow.trackingUri) -}}
{{- end }}

{{- define "ml-pipelines.mlflow.pod" -}}
{{- $image := include "ml-pipelines.mlflow.image" . | fromYaml -}}
metadata:
  labels:
    {{- include "ml-pipelines.podLabels" (list . "mlflow") | nindent 4 }}
spec:
  {{- include "ml-pipelines.podCommon" . | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" . }}
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" 10001 "group" 10001) | nindent 4 }}
  terminationGracePeriodSeconds: 20
  initContainers:
    # A newer MLflow refuses an older database. The file beside it names the image that
    # served it last, so that the seconds this takes are paid once per image.
    - name: upgrade-database
      image: {{ include "ml-pipelines.image" (list . $image) | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" . | nindent 8 }}
      command: ["sh", "-ceu"]
      args:
        - |
          if [ -s mlflow.db ] && [ "$(cat served-by 2>/dev/null)" != "$IMAGE" ]; then
            mlflow db upgrade sqlite:////mlflow/mlflow.db
          fi
          printf %s "$IMAGE" > served-by
      workingDir: /mlflow
      env:
        - name: IMAGE
          value: {{ include "ml-pipelines.image" (list . $image) | quote }}
        - name: HOME
          value: /tmp
      resources:
        {{- toYaml .Values.mlflow.resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /mlflow
        - name: tmp
          mountPath: /tmp
  containers:
    - name: mlflow
      image: {{ include "ml-pipelines.image" (list . $image) | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" . | nindent 8 }}
      # Arguments, not a command: the image's entry point passes signals on.
      args:
        - mlflow
        - server
        - --backend-store-uri=sqlite:////mlflow/mlflow.db
        - --artifacts-destination=/mlflow/artifacts
        - --host=0.0.0.0
        - --port=5000
        - --workers={{ .Values.mlflow.workers }}
        - --allowed-hosts={{ include "ml-pipelines.mlflow.allowedHosts" . }}
      workingDir: /mlflow
      env:
        - name: HOME
          value: /tmp
        - name: MLFLOW_DISABLE_TELEMETRY
          value: "true"
        # Background jobs (evaluation of language models) cost three more processes.
        - name: MLFLOW_SERVER_ENABLE_JOB_EXECUTION
          value: "false"
      ports:
        - name: http
          containerPort: 5000
      # Importing MLflow takes half a minute on a busy node with two cores.
      startupProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 150
      readinessProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: 10
        timeoutSeconds: 5
      livenessProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: 30
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- toYaml .Values.mlflow.resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /mlflow
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: data
      persistentVolumeClaim:
        claimName: {{ include "ml-pipelines.mlflow.name" . }}
    - name: tmp
      emptyDir: {}
{{- end }}
