{{- define "sandkeeper.name" -}}
{{- if contains "sandkeeper" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-sandkeeper" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "sandkeeper.account" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "sandkeeper.name" .) "default") }}
{{- end }}

{{- define "sandkeeper.labels" -}}
app.kubernetes.io/name: sandkeeper
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "sandkeeper.selector" -}}
app.kubernetes.io/name: sandkeeper
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{/* What every Pod has. Takes root, part, args, and the part's own values; `more` is of the container. */}}
{{- define "sandkeeper.pod" -}}
{{- $v := .root.Values -}}
serviceAccountName: {{ .account | default (include "sandkeeper.account" .root) }}
automountServiceAccountToken: {{ and $v.rbac.create (ne .part "beat") (ne .part "migrate") }}
enableServiceLinks: false # a Service `sandkeeper` would be SANDKEEPER_PORT, a setting that there is not
terminationGracePeriodSeconds: {{ .own.terminationGracePeriodSeconds | default 30 }}
{{- with $v.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
containers:
  - name: {{ .part }}
    image: {{ $v.image.repository }}{{ if $v.image.digest }}@{{ $v.image.digest }}{{ else }}:{{ $v.image.tag }}{{ end }}
    imagePullPolicy: {{ $v.image.pullPolicy }}
    args: {{ toJson .args }}
    env:
      - name: SANDKEEPER_DATABASE_URL
        valueFrom: { secretKeyRef: { name: {{ $v.secret.name }}, key: {{ $v.secret.databaseUrlKey }} } }
      - name: SANDKEEPER_BROKER_URL
        valueFrom: { secretKeyRef: { name: {{ $v.secret.name }}, key: {{ $v.secret.brokerUrlKey }} } }
      {{- if eq .part "api" }}
      - name: SANDKEEPER_API_TOKENS
        valueFrom: { secretKeyRef: { name: {{ $v.secret.name }}, key: {{ $v.secret.apiTokensKey }} } }
      {{- end }}
      - { name: SANDKEEPER_LOG_FORMAT, value: json }
      {{- range $name, $value := $v.settings }}
      - { name: SANDKEEPER_{{ $name }}, value: {{ $value | toString | quote }} }
      {{- end }}
      {{- if $v.rbac.create }}
      - { name: SANDKEEPER_KUBERNETES_KIND, value: {{ $v.rbac.kind }} }
      {{- end }}
      {{- with $v.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .more }}
    {{- . | nindent 4 }}
    {{- end }}
    resources: {{ toJson .own.resources }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: { drop: [ALL] }
    volumeMounts:
      - { name: tmp, mountPath: /tmp }
volumes:
  - name: tmp
    emptyDir: { sizeLimit: 256Mi }
{{- with $v.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with $v.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{/* A Deployment of such Pods. An old Pod goes only when a new one is there: see docs/upgrades.md. */}}
{{- define "sandkeeper.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "sandkeeper.name" .root }}-{{ .part }}
  labels:
    {{- include "sandkeeper.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
spec:
  replicas: {{ .own.replicas }}
  strategy: { type: RollingUpdate, rollingUpdate: { maxUnavailable: 0, maxSurge: 1 } }
  selector:
    matchLabels:
      {{- include "sandkeeper.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "sandkeeper.selector" . | nindent 8 }}
      {{- with .root.Values.podAnnotations }}
      annotations: {{ toJson . }}
      {{- end }}
    spec:
      {{- include "sandkeeper.pod" . | nindent 6 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "sandkeeper.selector" . | nindent 14 }}
{{- end }}
