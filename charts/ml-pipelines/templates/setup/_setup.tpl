{{/*
Spec of the Job that prepares the metadata database.

A Job cannot be changed, only replaced, and the official chart's Jobs keep their names: an upgrade
with other values fails while the old Job is there ("field is immutable"), and as hooks they
deadlock `helm --wait`, whose pods wait for the hook that waits for the pods. So: no hook, and a
name that ends in a hash of this spec. Unchanged values leave the finished Job alone, changed ones
make a new Job and remove the old. No ttl: a Job that removes itself is run again by every upgrade
and by every GitOps sync.
*/}}
{{- define "ml-pipelines.setup.spec" -}}
# About an hour and a half with the kubelet's pauses: a wrong Secret can be mended meanwhile.
backoffLimit: 20
template:
  {{- include "ml-pipelines.pod" (list . (include "ml-pipelines.setup.pod" .)) | nindent 2 }}
{{- end }}

{{- define "ml-pipelines.setup.migrate" -}}
{{- include "ml-pipelines.setup.airflow" (list . "migrate-database" "exec airflow db migrate") -}}
{{- end }}

{{/* A container that does something with the metadata database: (list . name script). */}}
{{- define "ml-pipelines.setup.airflow" -}}
{{- $root := index . 0 -}}
{{- $airflow := $root.Subcharts.airflow -}}
- name: {{ index . 1 }}
  image: {{ include "airflow_image" $airflow }}
  imagePullPolicy: {{ $root.Values.airflow.images.airflow.pullPolicy }}
  securityContext:
    {{- include "ml-pipelines.containerSecurity" $root | nindent 4 }}
  args:
    - bash
    - -ceu
    - |
      airflow db check --retry 60 --retry-delay 2
      {{- index . 2 | nindent 6 }}
  envFrom: {{- include "custom_airflow_environment_from" $airflow | indent 2 }}
  env:
    {{- include "standard_airflow_environment" $airflow | indent 2 }}
    {{- include "custom_airflow_environment" $airflow | indent 2 }}
  resources:
    {{- toYaml $root.Values.setup.resources | nindent 4 }}
  volumeMounts:
    {{- include "ml-pipelines.setup.mounts" $root | nindent 4 }}
{{- end }}

{{/*
The database as it is before the migration, on a claim. A half dump never has the name of a whole
one, and what goes are older dumps of this release only.
*/}}
{{- define "ml-pipelines.setup.dump" -}}
{{- $image := .Values.images.postgres -}}
- name: dump-database
  image: {{ include "ml-pipelines.image" (list . $image) | quote }}
  imagePullPolicy: {{ $image.pullPolicy }}
  securityContext:
    {{- include "ml-pipelines.containerSecurity" . | nindent 4 }}
  command: [sh, -ceu]
  args:
    - |
      {{- .Files.Get "files/database.sh" | nindent 6 }}
      cd "$DUMPS"
      pg_dump --format=custom --no-owner --file "$RELEASE.part" --dbname "$url"
      mv "$RELEASE.part" "$RELEASE-$(date -u +%Y%m%dT%H%M%SZ).dump"
      ls -1 "$RELEASE"-????????T??????Z.dump | head -n -"$KEEP" | xargs -r rm
      ls -l "$RELEASE"-????????T??????Z.dump
  env:
    - name: DUMPS
      value: /dumps
    - name: RELEASE
      value: {{ .Release.Name }}
    - name: KEEP
      value: {{ .Values.setup.dump.keep | quote }}
    - name: URL_SECRET
      value: {{ .Values.airflow.data.metadataSecretName }}
    - name: DATABASE_URL
      valueFrom:
        secretKeyRef:
          name: {{ .Values.airflow.data.metadataSecretName }}
          key: connection
    - name: DIRECT_URL
      valueFrom:
        secretKeyRef:
          name: {{ .Values.airflow.data.metadataSecretName }}
          key: direct
          optional: true
  resources:
    {{- toYaml .Values.setup.resources | nindent 4 }}
  volumeMounts:
    - name: dumps
      mountPath: /dumps
    - name: tmp
      mountPath: /tmp
{{- end }}

{{- define "ml-pipelines.setup.mounts" -}}
{{- include "airflow_config_mount" .Subcharts.airflow }}
- name: tmp
  mountPath: /tmp
# Every Airflow makes directories for logs when it starts.
- name: tmp
  mountPath: {{ include "airflow_logs" .Subcharts.airflow }}
  subPath: logs
{{- end }}

{{/* What those mounts are of. */}}
{{- define "ml-pipelines.setup.volumes" -}}
- name: config
  configMap:
    name: {{ include "airflow_config" .Subcharts.airflow }}
- name: tmp
  emptyDir: {}
{{- end }}

{{- define "ml-pipelines.setup.pod" -}}
{{- $airflow := .Subcharts.airflow -}}
metadata:
  {{- with .Values.setup.generation }}
  annotations:
    ml-pipelines/setup-generation: {{ . | quote }}
  {{- end }}
  labels:
    {{- include "ml-pipelines.podLabels" (list . "setup") | nindent 4 }}
    # Of Airflow's pods: the official chart's network policies let these reach PgBouncer.
    tier: airflow
    release: {{ .Release.Name }}
spec:
  {{- include "ml-pipelines.podCommon" . | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" . }}
  restartPolicy: OnFailure
  securityContext:
    {{- include "ml-pipelines.podSecurity" (dict "user" (int .Values.airflow.uid) "group" (int .Values.airflow.gid)) | nindent 4 }}
  {{- $before := list }}
  {{- if .Values.setup.dump.claimName }}
  {{- $before = append $before (include "ml-pipelines.setup.dump" .) }}
  {{- end }}
  {{- if .Values.admin.enabled }}
  {{- $before = append $before (include "ml-pipelines.setup.migrate" .) }}
  {{- end }}
  {{- with $before }}
  initContainers:
    {{- join "\n" . | nindent 4 }}
  {{- end }}
  {{- if .Values.admin.enabled }}
  containers:
    - name: admin-user
      image: {{ include "airflow_image" $airflow }}
      imagePullPolicy: {{ .Values.airflow.images.airflow.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" . | nindent 8 }}
      # The password goes through standard input: arguments show up in process lists.
      args:
        - bash
        # pipefail: a user that could not be made fails the Job, not `tee`.
        - -euo
        - pipefail
        - -c
        - |
          password() { printf '%s\n%s\n' "$ADMIN_PASSWORD" "$ADMIN_PASSWORD"; }
          result=$(mktemp)
          # The webserver gives the role its permissions.
          airflow roles create Admin
          password | airflow users create --role Admin --username "$ADMIN_USERNAME" \
            --email "$ADMIN_EMAIL" --firstname Airflow --lastname Admin | tee "$result"
          if grep -q 'already exist' "$result"; then
            # The Secret decides, also after it was changed.
            password | airflow users reset-password --username "$ADMIN_USERNAME"
          fi
      envFrom: {{- include "custom_airflow_environment_from" $airflow | indent 6 }}
      env:
        {{- include "standard_airflow_environment" $airflow | indent 6 }}
        {{- include "custom_airflow_environment" $airflow | indent 6 }}
        # The webserver writes all roles and permissions when it starts, which is when this runs
        # on an empty database: two writers trip over each other's rows.
        - name: AIRFLOW__FAB__UPDATE_FAB_PERMS
          value: "False"
        - name: ADMIN_USERNAME
          value: {{ .Values.admin.username | quote }}
        - name: ADMIN_EMAIL
          value: {{ .Values.admin.email | quote }}
        - name: ADMIN_PASSWORD
          valueFrom:
            secretKeyRef:
              name: {{ include "ml-pipelines.admin.secretName" . }}
              key: {{ .Values.admin.secretKey }}
      resources:
        {{- toYaml .Values.setup.resources | nindent 8 }}
      volumeMounts:
        {{- include "ml-pipelines.setup.mounts" . | nindent 8 }}
  {{- else }}
  containers:
    {{- include "ml-pipelines.setup.migrate" . | nindent 4 }}
  {{- end }}
  volumes:
    {{- include "ml-pipelines.setup.volumes" . | nindent 4 }}
    {{- with .Values.setup.dump.claimName }}
    - name: dumps
      persistentVolumeClaim:
        claimName: {{ . }}
    {{- end }}
{{- end }}
