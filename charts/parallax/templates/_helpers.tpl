{{/* Name of everything in this release: "parallax" when the release is called so. */}}
{{- define "parallax.fullname" -}}
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

{{/* Labels of every object. */}}
{{- define "parallax.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: parallax
{{ include "parallax.selector" . }}
{{- end -}}

{{/* Labels that never change: selectors are immutable. */}}
{{- define "parallax.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Reference of an image; a digest wins. Takes a list: image, default tag. */}}
{{- define "parallax.image" -}}
{{- $image := index . 0 -}}
{{- $tag := default (index . 1) $image.tag -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end -}}

{{- define "parallax.managerSecret" -}}
{{- default (printf "%s-manager-tls" (include "parallax.fullname" .)) .Values.tls.managerSecret -}}
{{- end -}}

{{- define "parallax.controllerSecret" -}}
{{- default (printf "%s-controller-tls" (include "parallax.fullname" .)) .Values.tls.controllerSecret -}}
{{- end -}}

{{/* The restricted Pod Security Standard, for a container. */}}
{{- define "parallax.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* One sidecar of the controller. Takes a dict: name, sidecar, args. */}}
{{- define "parallax.sidecar" -}}
- name: {{ .name }}
  image: {{ include "parallax.image" (list .sidecar.image "") }}
  imagePullPolicy: {{ .sidecar.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --v=2
    {{- range concat .args .sidecar.extraArgs }}
    - {{ . }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef: {fieldPath: metadata.namespace}
    - name: POD_NAME
      valueFrom:
        fieldRef: {fieldPath: metadata.name}
  ports:
    - name: {{ .name | trimPrefix "csi-" }}
      containerPort: {{ .port }}
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name | trimPrefix "csi-" }}}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
  securityContext:
    {{- include "parallax.restricted" . | nindent 4 }}
  resources:
    {{- toYaml .sidecar.resources | nindent 4 }}
  volumeMounts:
    - name: csi
      mountPath: /csi
{{- end -}}

{{/*
Names of the nodes that node.nodeSelector chooses, as a JSON list. Empty where no cluster can be asked, as in
`helm template`. Labels alone decide: whoever leaves nodes out by tolerations should label them.
*/}}
{{- define "parallax.nodes" -}}
{{- $chosen := list -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- $labels := default dict .metadata.labels -}}
{{- $fits := true -}}
{{- range $key, $value := $.Values.node.nodeSelector -}}
{{- if or (not (hasKey $labels $key)) (ne (toString (get $labels $key)) (toString $value)) -}}
{{- $fits = false -}}
{{- end -}}
{{- end -}}
{{- if $fits -}}
{{- $chosen = append $chosen .metadata.name -}}
{{- end -}}
{{- end -}}
{{- toJson $chosen -}}
{{- end -}}

{{/* A pool has one node for now. Said at once, instead of by a daemon that never gets ready. */}}
{{- define "parallax.oneNode" -}}
{{- $nodes := include "parallax.nodes" . | fromJsonArray -}}
{{- if gt (len $nodes) 1 -}}
{{- $one := first (sortAlpha $nodes) -}}
{{- fail (printf "\n\nA pool is used by one node for now, and node.nodeSelector chooses %d: %s.\nThe daemons of all but one would be refused by the pool. Choose a node:\n\n  kubectl label node %s parallax=here\n\nand install with --set node.nodeSelector.parallax=here\n" (len $nodes) (join ", " (sortAlpha $nodes)) $one) -}}
{{- end -}}
{{- end -}}
