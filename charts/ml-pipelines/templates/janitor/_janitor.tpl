{{/*
What the CronJobs have in common: (dict "root" . "namespace" "..." "name" "..." "component" "..."
"schedule" "..." "program" "file" "arguments" list "volume" dict), and if wanted "readOnly" of the
volume's mount, "variables" (env and envFrom of the container) and "serviceAccount". From "program" on
it is about ml-pipelines.janitor.pod; "pod" takes its place.
*/}}
{{- define "ml-pipelines.janitor.cronjob" -}}
{{- $root := .root -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "ml-pipelines.labels" (list $root .component) | nindent 4 }}
spec:
  schedule: {{ .schedule | quote }}
  # Airflow's schedules are in UTC too.
  timeZone: Etc/UTC
  # Two at once would remove the same things.
  concurrencyPolicy: Forbid
  # Without one, more than a hundred that were missed would be the end of it.
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 1
  jobTemplate:
    metadata:
      labels:
        {{- include "ml-pipelines.labels" (list $root .component) | nindent 8 }}
    spec:
      # What could not be removed is tried again the next time; the failed Job stays to be seen.
      backoffLimit: 0
      activeDeadlineSeconds: {{ $root.Values.janitor.deadlineSeconds }}
      template:
        {{- if .pod }}
        {{- include "ml-pipelines.pod" (list $root .pod) | nindent 8 }}
        {{- else }}
        {{- include "ml-pipelines.pod" (list $root (include "ml-pipelines.janitor.pod" .)) | nindent 8 }}
        {{- end }}
{{- end }}

{{/*
Where a janitor cleans a volume, and a Job tries it, as a JSON list: in each namespace with a claim.
With storage.local all claims are the same directory.
*/}}
{{- define "ml-pipelines.janitor.namespaces" -}}
{{- if .Values.storage.local.path -}}
{{- list .Release.Namespace | toJson -}}
{{- else -}}
{{- include "ml-pipelines.namespaces" . -}}
{{- end -}}
{{- end }}

{{- define "ml-pipelines.janitor.pod" -}}
{{- $root := .root -}}
{{- $image := $root.Values.images.classicExample -}}
metadata:
  labels:
    {{- include "ml-pipelines.podLabels" (list $root .component) | nindent 4 }}
spec:
  {{- include "ml-pipelines.podCommon" $root | nindent 2 }}
  serviceAccountName: {{ .serviceAccount | default (include "ml-pipelines.pods.accountName" $root) }}
  restartPolicy: Never
  # The user of the task pods: it may remove what they may write, and no more.
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" 10001 "group" 10001) | nindent 4 }}
  containers:
    - name: janitor
      image: {{ include "ml-pipelines.image" (list $root $image) | quote }}
      imagePullPolicy: {{ $image.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" $root | nindent 8 }}
      command: [python, /janitor/{{ .program }}]
      args:
        {{- toYaml .arguments | nindent 8 }}
      {{- with .variables }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      resources:
        {{- toYaml $root.Values.janitor.resources | nindent 8 }}
      volumeMounts:
        - name: program
          mountPath: /janitor
          readOnly: true
        - name: {{ .volume.name }}
          mountPath: /{{ .volume.name }}
          {{- if .readOnly }}
          readOnly: true
          {{- end }}
  volumes:
    - name: program
      configMap:
        name: {{ include "ml-pipelines.janitor.name" $root }}
    - {{- toYaml .volume | nindent 6 }}
{{- end }}
