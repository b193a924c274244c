{{/* Parts of pods. A group of Ray pods, here and in _ray-cluster.tpl, is
     (dict "root" $ "component" "head" "pod" .Values.head): `component` is head or worker. */}}

{{- define "agent-actors.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A volume of the Secret that a value of `secrets` names, and its mount, on a new line each or nothing:
     (dict "root" $ "value" "natsCa" "name" "nats-ca"). */}}
{{- define "agent-actors.secretVolume" -}}
{{- with get .root.Values.secrets .value }}
- {name: {{ $.name }}, secret: {secretName: {{ . }}, defaultMode: 0440}}
{{- end }}
{{- end }}

{{- define "agent-actors.secretMount" -}}
{{- if get .root.Values.secrets .value }}
- {name: {{ .name }}, mountPath: /etc/agent-actors/{{ .name }}, readOnly: true}
{{- end }}
{{- end }}

{{/* The pod template of a group. */}}
{{- define "agent-actors.rayPodTemplate" -}}
metadata:
  # Pods of a RayService lack the labels that those of a RayCluster have: what selects ours goes by these.
  labels:
    {{- include "agent-actors.podLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with .pod.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .pod.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "agent-actors.name" .root }}-{{ .component }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: Never
  # The head's is as long as the workers': they need it until their last task has ended.
  terminationGracePeriodSeconds: {{ include "agent-actors.gracePeriod" .root }}
  securityContext:
    {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  {{- with include "agent-actors.placing" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: ray-{{ .component }}
      image: {{ include "agent-actors.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      ports:
        {{- include "agent-actors.rayPorts" . | nindent 8 }}
      env:
        {{- include "agent-actors.rayEnv" . | nindent 8 }}
      lifecycle:
        preStop:
          exec:
            command: [agent-actors, drain, --node]
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 30
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 120
      # KubeRay's own asks workers for a Serve proxy too, which they do not have here (kuberay#4994).
      readinessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 10
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 10
      resources:
        {{- toYaml .pod.resources | nindent 8 }}
      securityContext:
        {{- include "agent-actors.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "agent-actors.rayMounts" . | nindent 8 }}
  volumes:
    {{- include "agent-actors.rayVolumes" . | nindent 4 }}
{{- end }}

{{/* Where pods run, and who may fetch their image. */}}
{{- define "agent-actors.placing" -}}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "agent-actors.selector" $.root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
  {{- end }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* 10001, Ray's client server, is left out: nothing of ours speaks to it. */}}
{{- define "agent-actors.rayPorts" -}}
{{- if eq .component "head" -}}
- {name: gcs-server, containerPort: 6379}
- {name: serve, containerPort: 8000}
- {name: metrics, containerPort: 8080}
- {name: dashboard, containerPort: 8265}
- {name: as-metrics, containerPort: 44217}
- {name: dash-metrics, containerPort: 44227}
{{- else -}}
- {name: metrics, containerPort: 8080}
{{- end }}
- {name: dash-agent, containerPort: 52365}
{{- end }}

{{- define "agent-actors.rayEnv" -}}
- {name: AGENT_ACTORS_CONFIG, value: /etc/agent-actors/config/agent-actors.yaml}
# The image's own home is read-only, as all of it is.
- {name: HOME, value: /home/agent-actors}
{{- if eq .component "head" }}
# Once its preStop has seen the workers' tasks end, nothing is left to wait for; but Serve's controller never leaves,
# and Ray would wait for it all this time.
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "10"}
{{- else }}
# Should preStop fail, tasks still have their time.
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ include "agent-actors.longestTask" .root | quote }}}
{{- end }}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- with .root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "agent-actors.rayMounts" -}}
- {name: config, mountPath: /etc/agent-actors/config, readOnly: true}
{{- include "agent-actors.secretMount" (dict "root" .root "value" "nats" "name" "nats") }}
{{- include "agent-actors.secretMount" (dict "root" .root "value" "natsCa" "name" "nats-ca") }}
{{- include "agent-actors.secretMount" (dict "root" .root "value" "vllm" "name" "vllm") }}
- {name: home, mountPath: /home/agent-actors}
- {name: tmp, mountPath: /tmp}
# By this name and at this path, KubeRay mounts it into the autoscaler's container too.
- {name: ray-logs, mountPath: /tmp/ray}
- {name: shared-mem, mountPath: /dev/shm}
{{- if eq .component "worker" }}
- {name: workspaces, mountPath: /var/lib/agent-actors/workspaces}
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A ConfigMap and Secrets are mounted as folders, never by subPath, so that they change in running pods. */}}
{{- define "agent-actors.rayVolumes" -}}
- {name: config, configMap: {name: {{ include "agent-actors.name" .root }}-config}}
{{- include "agent-actors.secretVolume" (dict "root" .root "value" "nats" "name" "nats") }}
{{- include "agent-actors.secretVolume" (dict "root" .root "value" "natsCa" "name" "nats-ca") }}
{{- include "agent-actors.secretVolume" (dict "root" .root "value" "vllm" "name" "vllm") }}
- {name: home, emptyDir: {sizeLimit: 1Gi}}
- {name: tmp, emptyDir: {sizeLimit: 5Gi}}
- {name: ray-logs, emptyDir: {sizeLimit: 5Gi}}
# It counts as the container's memory; without a limit of ours it would get all of that.
- {name: shared-mem, emptyDir: {medium: Memory, sizeLimit: {{ include "agent-actors.sharedMemory" . }}}}
{{- if eq .component "worker" }}
{{- with .pod.workspaces }}
{{- if .claimName }}
- {name: workspaces, persistentVolumeClaim: {claimName: {{ .claimName }}}}
{{- else }}
- {name: workspaces, emptyDir: {sizeLimit: {{ .sizeLimit }}}}
{{- end }}
{{- end }}
{{- else if .root.Values.autoscaling.enabled }}
- name: kube-api-access
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Ray's object store, and as much again for what else is in shared memory. */}}
{{- define "agent-actors.sharedMemory" -}}
{{ div (mul 2 (int64 .pod.objectStoreMemoryBytes)) 1048576 }}Mi
{{- end }}
