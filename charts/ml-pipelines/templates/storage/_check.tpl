{{/*
Spec of a Job that tries a volume as its users will: (dict "root" . "component" "..." "claim" "..."
"user" 1 "group" 1), and "subPath" when they write in directories that the kubelet makes.

It binds the claim at the install. With a class that waits for the first consumer a claim that only
tasks mount would stay Pending, and `helm --wait`, Flux and Argo CD would wait for it without an
end. As the setup Job it is no hook, and its name ends in a hash of this spec.
*/}}
{{- define "ml-pipelines.storage.check" -}}
{{- $root := .root -}}
# As the setup Job: the volume can be mended meanwhile.
backoffLimit: 20
template:
  {{- include "ml-pipelines.pod" (list .root (include "ml-pipelines.storage.check.pod" .)) | nindent 2 }}
{{- end }}

{{/* The Job: as above, and "namespace" and "name". */}}
{{- define "ml-pipelines.storage.check.job" -}}
{{- $spec := include "ml-pipelines.storage.check" . -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}-{{ include "ml-pipelines.hash" $spec }}
  namespace: {{ .namespace }}
  labels:
    {{- include "ml-pipelines.labels" (list .root .component) | nindent 4 }}
spec:
  {{- $spec | nindent 2 }}
{{- end }}

{{- define "ml-pipelines.storage.check.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "ml-pipelines.podLabels" (list $root .component) | nindent 4 }}
spec:
  {{- include "ml-pipelines.podCommon" $root | nindent 2 }}
  serviceAccountName: {{ include "ml-pipelines.pods.accountName" $root }}
  restartPolicy: OnFailure
  securityContext:
    {{- include "ml-pipelines.podSecurity" . | nindent 4 }}
  containers:
    - name: check-volume
      image: {{ include "airflow_image" $root.Subcharts.airflow }}
      imagePullPolicy: {{ $root.Values.airflow.images.airflow.pullPolicy }}
      securityContext:
        {{- include "ml-pipelines.containerSecurity" $root | nindent 8 }}
      command: [python, -c]
      args:
        - |
          {{- $root.Files.Get "files/check_volume.py" | nindent 10 }}
        - {{ .subPath | ternary "/directory" "/volume" }}
        - /volume
      resources:
        {{- toYaml $root.Values.setup.resources | nindent 8 }}
      volumeMounts:
        - name: volume
          mountPath: /volume
        {{- if .subPath }}
        - name: volume
          mountPath: /directory
          # One, not two: what the kubelet made below a root that nobody else could write to can
          # then be removed by the try after that was mended, and the next one gets another.
          subPath: _check
        {{- end }}
  volumes:
    - name: volume
      persistentVolumeClaim:
        claimName: {{ .claim }}
{{- end }}
