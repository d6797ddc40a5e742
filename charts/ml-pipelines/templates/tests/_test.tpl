{{- define "ml-pipelines.test.pod" -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "ml-pipelines.test.name" . }}
  labels:
    {{- include "ml-pipelines.labels" (list . "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    # The finished pod stays until the next test, for `kubectl logs`.
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  {{- include "ml-pipelines.podCommon" . | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" . }}
  restartPolicy: Never
  # The user of the task pods, so that what it can write the tasks can write.
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" 10001 "group" 10001) | nindent 4 }}
  containers:
    - name: test
      image: {{ include "airflow_image" .Subcharts.airflow }}
      imagePullPolicy: {{ .Values.airflow.images.airflow.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" . | nindent 8 }}
      command: [python, -c]
      args:
        - |
          {{- .Files.Get "files/check_release.py" | nindent 10 }}
      env:
        {{- if include "ml-pipelines.airflow3" . }}
        - name: AIRFLOW
          value: "3"
        {{- end }}
        - name: AIRFLOW_URL
          value: http://{{ include "ml-pipelines.webserver.name" . }}:{{ .Values.airflow.ports.airflowUI }}{{ include "ml-pipelines.webserver.path" . }}
        {{- if .Values.mlflow.enabled }}
        - name: MLFLOW_URL
          value: http://{{ include "ml-pipelines.mlflow.name" . }}:5000
        {{- end }}
        {{- if .Values.admin.enabled }}
        - name: ADMIN_USERNAME
          value: {{ .Values.admin.username | quote }}
        - name: ADMIN_PASSWORD
          valueFrom:
            secretKeyRef:
              name: {{ include "ml-pipelines.admin.secretName" . }}
              key: {{ .Values.admin.secretKey }}
        {{- end }}
      resources:
        {{- toYaml .Values.setup.resources | nindent 8 }}
      volumeMounts:
        - name: settings
          mountPath: /settings
          readOnly: true
        - name: storage
          mountPath: /storage
  volumes:
    - name: settings
      configMap:
        name: {{ include "ml-pipelines.settings.name" . }}
    - name: storage
      persistentVolumeClaim:
        claimName: {{ .Values.storage.claimName }}
{{- end }}
