{{/* The spec of the Job that makes streams, buckets and consumers. */}}
{{- define "agent-actors.provisionJob" -}}
backoffLimit: 20
activeDeadlineSeconds: 1800
ttlSecondsAfterFinished: 86400
template:
  metadata:
    labels:
      {{- include "agent-actors.podLabels" . | nindent 6 }}
      app.kubernetes.io/component: provision
      {{- with .Values.provision.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .Values.provision.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    serviceAccountName: {{ include "agent-actors.name" . }}-worker
    automountServiceAccountToken: false
    enableServiceLinks: false
    restartPolicy: OnFailure
    securityContext:
      {{- toYaml (omit .Values.podSecurityContext "fsGroupChangePolicy") | nindent 6 }}
    {{- with include "agent-actors.placing" (dict "root" . "component" "provision" "pod" .Values.provision) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: provision
        image: {{ include "agent-actors.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [agent-actors, provision]
        env:
          - {name: AGENT_ACTORS_CONFIG, value: /etc/agent-actors/config/agent-actors.yaml}
          {{- if .Values.secrets.provisioner }}
          - {name: AGENT_ACTORS_NATS_NKEY_SEED_FILE, value: /etc/agent-actors/provisioner/provisioner.nk}
          {{- end }}
          - {name: AGENT_ACTORS_NATS_INBOX_PREFIX, value: _INBOX_provisioner}
          - {name: HOME, value: /tmp}
          {{- with .Values.provision.extraEnv }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        resources:
          {{- toYaml .Values.provision.resources | nindent 10 }}
        securityContext:
          {{- include "agent-actors.containerSecurity" . | nindent 10 }}
        volumeMounts:
          {{- include "agent-actors.provisionMounts" . | nindent 10 }}
    volumes:
      {{- include "agent-actors.provisionVolumes" . | nindent 6 }}
{{- end }}

{{/* The configuration names the model's key too, and one that cannot be read is an error. */}}
{{- define "agent-actors.provisionMounts" -}}
- {name: config, mountPath: /etc/agent-actors/config, readOnly: true}
{{- include "agent-actors.secretMount" (dict "root" . "value" "provisioner" "name" "provisioner") }}
{{- include "agent-actors.secretMount" (dict "root" . "value" "natsCa" "name" "nats-ca") }}
{{- include "agent-actors.secretMount" (dict "root" . "value" "vllm" "name" "vllm") }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "agent-actors.provisionVolumes" -}}
- {name: config, configMap: {name: {{ include "agent-actors.name" . }}-config}}
{{- include "agent-actors.secretVolume" (dict "root" . "value" "provisioner" "name" "provisioner") }}
{{- include "agent-actors.secretVolume" (dict "root" . "value" "natsCa" "name" "nats-ca") }}
{{- include "agent-actors.secretVolume" (dict "root" . "value" "vllm" "name" "vllm") }}
- {name: tmp, emptyDir: {sizeLimit: 100Mi}}
{{- end }}
