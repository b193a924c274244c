{{/* Names: the release's, with the chart's after it unless it is in it; KubeRay takes 47 characters at most. */}}
{{- define "agent-actors.name" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "agent-actors.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of pods, which outlive a version of the chart: nothing here may change with it. */}}
{{- define "agent-actors.podLabels" -}}
{{ include "agent-actors.selector" . }}
app.kubernetes.io/part-of: {{ .Chart.Name }}
{{- end }}

{{- define "agent-actors.labels" -}}
{{ include "agent-actors.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Everything of `metadata` but the name's suffix: (dict "root" $ "suffix" "-config" "labels" (dict …)). */}}
{{- define "agent-actors.metadata" -}}
name: {{ include "agent-actors.name" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "agent-actors.labels" .root | nindent 2 }}
  {{- with merge (dict) (.labels | default dict) .root.Values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "agent-actors.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The ConfigMap's text. No pools at all: the service's own default one. */}}
{{- define "agent-actors.config" -}}
{{- toYaml (empty .Values.config.pools | ternary (omit .Values.config "pools") .Values.config) -}}
{{- end }}

{{/* The longest time in seconds that a task may take, of all pools: what is not given is the service's default. */}}
{{- define "agent-actors.longestTask" -}}
{{- $longest := 0 -}}
{{- range .Values.config.pools | default (dict "default" dict) -}}
{{- $longest = max $longest (ceil (.task_timeout_s | default 600)) -}}
{{- end -}}
{{- $longest -}}
{{- end }}

{{/* What pods, and an old cluster, get on top of it: to drain, and to tell. */}}
{{- define "agent-actors.gracePeriod" -}}
{{- add (include "agent-actors.longestTask" .) 45 -}}
{{- end }}

{{- define "agent-actors.deletionDelay" -}}
{{- add (include "agent-actors.longestTask" .) 60 -}}
{{- end }}

{{/* The groups of workers by name, each with what `worker` says and it does not. */}}
{{- define "agent-actors.workerGroups" -}}
{{- $groups := dict -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- $_ := set $groups $name (mergeOverwrite (deepCopy $.Values.worker) ($group | default dict)) -}}
{{- end -}}
{{- toJson $groups -}}
{{- end }}

{{/* The fewest workers that there are. */}}
{{- define "agent-actors.fewestWorkers" -}}
{{- $fewest := 0 -}}
{{- range include "agent-actors.workerGroups" . | fromJson -}}
{{- $fewest = add $fewest (ternary .minReplicas .replicas $.Values.autoscaling.enabled) -}}
{{- end -}}
{{- $fewest -}}
{{- end }}

{{/* Refuses what contradicts itself, and no schema can say. */}}
{{- define "agent-actors.check" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "agent-actors.name" .)) -}}
{{- fail (printf "%s can be no cluster's name, which begins with a letter and has only a-z, 0-9 and -: give one as fullnameOverride" (include "agent-actors.name" .)) -}}
{{- end -}}
{{- $config := toJson .Values.config -}}
{{- range $value, $folder := dict "nats" "nats" "natsCa" "nats-ca" "vllm" "vllm" -}}
{{- if and (not (get $.Values.secrets $value)) (contains (printf "\"/etc/agent-actors/%s/" $folder) $config) -}}
{{- fail (printf "secrets.%s names no Secret, but config names a file in /etc/agent-actors/%s: give the Secret, or set that key of config to null" $value $folder) -}}
{{- end -}}
{{- end -}}
{{- range $name, $pool := .Values.config.pools -}}
{{- $subjects := $pool.subjects | default (list "agent.tasks.>") -}}
{{- if and (gt (len $.Values.config.pools) 1) (or (has "agent.tasks.>" $subjects) (has "agent.tasks.*" $subjects)) -}}
{{- fail (printf "config.pools.%s serves all tasks, so there can be no other pool: narrow its subjects, or take it away with `%s: null`" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kueue.queueName .Values.autoscaling.enabled -}}
{{- fail "kueue.queueName needs autoscaling.enabled: false: Kueue refuses Ray's autoscaler" -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- range $name, $group := include "agent-actors.workerGroups" . | fromJson -}}
{{- if or (lt $group.replicas $group.minReplicas) (gt $group.replicas $group.maxReplicas) -}}
{{- fail (printf "workerGroups.%s: replicas must be between minReplicas and maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
