{{/* The spec of the RayCluster, be it one of its own or a RayService's. */}}
{{- define "agent-actors.rayCluster" -}}
rayVersion: {{ .Values.rayVersion }}
# The token keeps strangers out, and encrypts nothing.
authOptions:
  mode: token
  {{- with .Values.secrets.rayToken }}
  secretName: {{ . }}
  {{- end }}
enableInTreeAutoscaling: {{ .Values.autoscaling.enabled }}
{{- if .Values.autoscaling.enabled }}
autoscalerOptions:
  {{- include "agent-actors.autoscaler" . | nindent 2 }}
{{- end }}
{{- if ne .Values.gcsFaultTolerance.backend "none" }}
gcsFaultToleranceOptions:
  {{- include "agent-actors.gcsFaultTolerance" .Values.gcsFaultTolerance | nindent 2 }}
{{- end }}
headGroupSpec:
  {{- $head := dict "root" . "component" "head" "pod" .Values.head }}
  rayStartParams:
    # No actors here: the loss of one must not take what holds the cluster together.
    num-cpus: "0"
    {{- include "agent-actors.rayStartParams" .Values.head | nindent 4 }}
  {{- with .Values.head.rayLabels }}
  labels:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  template:
    {{- include "agent-actors.rayPodTemplate" $head | nindent 4 }}
workerGroupSpecs:
  {{- range $name, $group := include "agent-actors.workerGroups" . | fromJson }}
  - groupName: {{ $name }}
    replicas: {{ $group.replicas }}
    {{- if $.Values.autoscaling.enabled }}
    minReplicas: {{ $group.minReplicas }}
    maxReplicas: {{ $group.maxReplicas }}
    idleTimeoutSeconds: {{ int64 $group.idleTimeoutSeconds }}
    {{- else }}
    minReplicas: {{ $group.replicas }}
    maxReplicas: {{ $group.replicas }}
    {{- end }}
    rayStartParams:
      {{- include "agent-actors.rayStartParams" $group | nindent 6 }}
    {{- with $group.rayLabels }}
    labels:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    template:
      {{- include "agent-actors.rayPodTemplate" (dict "root" $ "component" "worker" "pod" $group) | nindent 6 }}
  {{- end }}
{{- end }}

{{- define "agent-actors.autoscaler" -}}
version: v2
upscalingMode: {{ .Values.autoscaling.upscalingMode }}
idleTimeoutSeconds: {{ int64 .Values.autoscaling.idleTimeoutSeconds }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  {{- toYaml .Values.autoscaling.resources | nindent 2 }}
securityContext:
  {{- include "agent-actors.containerSecurity" . | nindent 2 }}
env:
  - {name: HOME, value: /home/agent-actors}
volumeMounts:
  - {name: home, mountPath: /home/agent-actors}
  - {name: tmp, mountPath: /tmp}
  # Nobody else in the pod has a token of the Kubernetes API.
  - {name: kube-api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* Without externalStorageNamespace or claimName each cluster has a place of its own: with one, the old and the new
     cluster of an upgrade would overwrite each other. */}}
{{- define "agent-actors.gcsFaultTolerance" -}}
backend: {{ .backend }}
{{- if eq .backend "redis" }}
redisAddress: {{ .redis.address }}
{{- with .redis.password }}
{{- if .name }}
redisPassword:
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- with .redis.username }}
{{- if .name }}
redisUsername:
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- else }}
storage:
  size: {{ .rocksdb.size }}
  {{- with .rocksdb.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "agent-actors.rayStartParams" -}}
object-store-memory: {{ int64 .objectStoreMemoryBytes | quote }}
{{- with .rayStartParams }}
{{ toYaml . }}
{{- end }}
{{- end }}
