{{/* Prefix of all names: the release, and the chart unless the name of the release contains it. */}}
{{- define "kvasir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kvasir.operator" -}}{{ include "kvasir.fullname" . }}-operator{{- end -}}
{{- define "kvasir.leader" -}}{{ include "kvasir.fullname" . }}-leader{{- end -}}
{{/* The operator derives the same name (api_server/leader): from the managed namespaces, not from the release. */}}
{{- define "kvasir.lease" -}}kvasir-operator{{ with .Values.operator.watchNamespace }}-{{ . }}{{ end }}{{- end -}}
{{- define "kvasir.webhook" -}}{{ include "kvasir.fullname" . }}-webhook{{- end -}}
{{- define "kvasir.webhookSecret" -}}{{ include "kvasir.fullname" . }}-webhook-cert{{- end -}}
{{- define "kvasir.webhookConfiguration" -}}{{ include "kvasir.fullname" . }}-sidecar{{- end -}}
{{- define "kvasir.tokenReviewRole" -}}{{ include "kvasir.fullname" . }}-token-review{{- end -}}

{{- define "kvasir.image" -}}{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}{{- end -}}

{{/* Selects the operator's pods; must not change during the life of a release. */}}
{{- define "kvasir.selector" -}}
app.kubernetes.io/name: kvasir-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "kvasir.labels" -}}
{{ include "kvasir.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: kvasir
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}
