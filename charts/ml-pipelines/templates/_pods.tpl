{{/*
Pieces of the pods that this chart makes itself.
*/}}

{{/*
Reference of an image given as {repository, tag, digest}: (list . image). A digest wins over the tag.
*/}}
{{- define "ml-pipelines.image" -}}
{{- $image := index . 1 -}}
{{- $end := ternary (printf "@%s" $image.digest) (printf ":%v" $image.tag) (not (empty $image.digest)) -}}
{{- include "ml-pipelines.mirrored" (list (index . 0) (print $image.repository $end)) -}}
{{- end }}

{{/*
A reference of an image with the registry that stands for all, in place of its own: (list . text).
A first part is a registry by the rule of container runtimes: it has a dot or a port, or is localhost.
*/}}
{{- define "ml-pipelines.mirrored" -}}
{{- $reference := index . 1 -}}
{{- with (index . 0).Values.global.imageRegistry -}}
{{- $reference = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $reference "") -}}
{{- end -}}
{{- $reference -}}
{{- end }}

{{/* The image of the MLflow server as YAML: its own, or the pipelines' image. */}}
{{- define "ml-pipelines.mlflow.image" -}}
{{- ternary .Values.images.classicExample .Values.images.mlflow (empty .Values.images.mlflow.repository) | toYaml -}}
{{- end }}

{{/* Security of a container: the "restricted" profile of the Pod Security Standards. */}}
{{- define "ml-pipelines.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Security of a pod that runs as the given user and group; files of its volumes are the group's. */}}
{{- define "ml-pipelines.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .group }}
fsGroup: {{ .group }}
# Changing owners file by file takes minutes on a full volume; the root tells whether it is done.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/*
Metadata and spec of a pod of ours, with what `pods` in the values adds: (list . text). What is said
there of the container `base` holds for each of the pod's; labels that selectors need stay ours.
*/}}
{{- define "ml-pipelines.pod" -}}
{{- $layer := (include "ml-pipelines.settings.layer" (list (index . 0) (omit (index . 0).Values.pods "serviceAccount")) | fromJson).pod -}}
{{- if $layer -}}
{{- $pod := index . 1 | fromYaml -}}
{{- $spec := $layer.spec | default dict -}}
{{- $base := dict -}}
{{- $others := list -}}
{{- range $spec.containers -}}
{{- if eq .name "base" -}}
{{- $base = . -}}
{{- else -}}
{{- $others = append $others . -}}
{{- end -}}
{{- end -}}
{{- range $kind, $more := dict "containers" $others "initContainers" ($spec.initContainers | default list) -}}
{{- $containers := list -}}
{{- range get $pod.spec $kind | default list -}}
{{- $containers = append $containers (set (deepCopy $base) "name" .name) -}}
{{- end -}}
{{- with concat $containers $more -}}
{{- $_ := set $spec $kind . -}}
{{- end -}}
{{- end -}}
{{- $metadata := $layer.metadata | default dict -}}
{{- with $metadata.labels -}}
{{- $_ := set $metadata "labels" (merge dict $pod.metadata.labels .) -}}
{{- end -}}
{{- (include "ml-pipelines.settings.merged" (list $pod (set (set $layer "metadata" $metadata) "spec" $spec) "" true) | fromJson).is | toYaml -}}
{{- else -}}
{{- index . 1 -}}
{{- end -}}
{{- end }}

{{/* What every pod of ours has in common, Airflow's choice of nodes included. */}}
{{- define "ml-pipelines.podCommon" -}}
# None of these pods talks to the Kubernetes API, but one that mounts a token itself.
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.airflow.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.airflow.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.airflow.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Access modes of the claim `storage` or `logs`, as YAML: (list . "storage"). Not given: a directory
of a node serves all of that node's pods, and what clusters of one node provision is for one node.
*/}}
{{- define "ml-pipelines.accessModes" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
{{- $oneNode := and (eq (index . 0).Values.profile "local") (not (dig "local" "path" "" $values)) -}}
{{- $values.accessModes | default (list (ternary "ReadWriteOnce" "ReadWriteMany" $oneNode)) | toYaml -}}
{{- end }}

{{/*
Spec of a claim from {size, storageClassName, accessModes}. As in the official chart an empty
class means the cluster's default and "-" means no class, that is no provisioning.
*/}}
{{- define "ml-pipelines.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
resources:
  requests:
    storage: {{ .size }}
{{- if eq "-" .storageClassName }}
storageClassName: ""
{{- else if .storageClassName }}
storageClassName: {{ .storageClassName }}
{{- end }}
{{- end }}

{{/*
End of a Job's name, from its spec as text: a Job cannot be changed, only replaced. Comments do not
count, they change nothing.
*/}}
{{- define "ml-pipelines.hash" -}}
{{- . | fromYaml | toJson | sha256sum | trunc 10 -}}
{{- end }}

{{/* Annotation that makes `helm uninstall` leave an object with data alone. */}}
{{- define "ml-pipelines.keep" -}}
helm.sh/resource-policy: keep
{{- end }}

{{/* Section of Airflow's configuration that has the public address of its page. */}}
{{- define "ml-pipelines.webserver.section" -}}
{{- include "ml-pipelines.airflow3" . | empty | ternary "webserver" "api" -}}
{{- end }}

{{/* Public address of the Airflow page, or nothing. */}}
{{- define "ml-pipelines.webserver.url" -}}
{{- with (index .Values.airflow.config (include "ml-pipelines.webserver.section" .)).base_url -}}
{{- eq . "/" | ternary "" . -}}
{{- end -}}
{{- end }}

{{/* Address at which people open the page of a run, with {dag_id} and {run_id} in it. */}}
{{- define "ml-pipelines.webserver.run" -}}
{{- $page := include "ml-pipelines.webserver.url" . | default (printf "http://localhost:%v" .Values.airflow.ports.airflowUI) | trimSuffix "/" -}}
{{- $page }}/dags/{dag_id}/{{ include "ml-pipelines.airflow3" . | empty | ternary "grid?dag_run_id=" "runs/" }}{run_id}
{{- end }}

{{/* Path of the Airflow page: the one in its public address, as the official probes take it. */}}
{{- define "ml-pipelines.webserver.path" -}}
{{- with include "ml-pipelines.webserver.url" . -}}
{{- (urlParse .).path | trimSuffix "/" -}}
{{- end -}}
{{- end }}
