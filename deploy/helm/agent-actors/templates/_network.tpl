{{/* A NetworkPolicy's beginning: (dict "root" $ "suffix" "-dns" "components" (list "head") "types" (list "Egress")).
     Without components it is for all pods of ours, or of the namespace if that is the service's own. */}}
{{- define "agent-actors.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "agent-actors.metadata" . | nindent 2 }}
spec:
  podSelector:
    {{- if .components }}
    {{- include "agent-actors.podSelector" . | nindent 4 }}
    {{- else if .root.Values.networkPolicies.wholeNamespace }} {}
    {{- else }}
    matchLabels:
      {{- include "agent-actors.selector" .root | nindent 6 }}
    {{- end }}
  policyTypes: {{ toJson .types }}
{{- end }}

{{- define "agent-actors.podSelector" -}}
matchLabels:
  {{- include "agent-actors.selector" .root | nindent 2 }}
  {{- if eq (len .components) 1 }}
  app.kubernetes.io/component: {{ first .components }}
  {{- else }}
matchExpressions:
  - {key: app.kubernetes.io/component, operator: In, values: {{ toJson .components }}}
  {{- end }}
{{- end }}

{{/* Pods in another namespace, from a value with `namespace` and `podLabels`. */}}
{{- define "agent-actors.peer" -}}
- namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .namespace }}}}
  {{- with .podLabels }}
  podSelector:
    matchLabels:
      {{- toYaml . | nindent 6 }}
  {{- end }}
{{- end }}
