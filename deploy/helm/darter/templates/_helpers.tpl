{{/* The name of the chart in labels. */}}
{{- define "darter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The first part of all names. A Service has at most 63 letters, and a StatefulSet 52: its pods carry its name and a
hash in a label. */}}
{{- define "darter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "darter.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "darter.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "darter.supernode" -}}{{ include "darter.fullname" . }}-supernode{{- end -}}
{{- define "darter.dfdaemon" -}}{{ include "darter.fullname" . }}-dfdaemon{{- end -}}
{{- define "darter.cleanup" -}}{{ include "darter.fullname" . }}-cleanup{{- end -}}

{{- define "darter.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "darter.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "darter.secret" -}}
{{- default (printf "%s-cluster" (include "darter.fullname" .)) .Values.cluster.existingSecret -}}
{{- end -}}

{{/* Labels by which controllers find their pods: they never change. Argument: root, component. */}}
{{- define "darter.selector" -}}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/name: {{ include "darter.name" .root | quote }}
{{- end -}}

{{/* Labels of an object. Argument: root, component (may be empty), more (a map, may be missing). */}}
{{- define "darter.labels" -}}
{{- $own := dict "app.kubernetes.io/name" (include "darter.name" .root) "app.kubernetes.io/instance" .root.Release.Name -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "darter" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "-" | trunc 63) -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $_ := set $own "helm.sh/chart" $chart -}}
{{- with .component -}}
{{- $_ := set $own "app.kubernetes.io/component" . -}}
{{- end -}}
{{- merge $own (default dict .more) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Labels of pods. They leave out versions, so that pods are made again only if what they run changes. Argument: root,
component, own (a map, may be missing), more (the same from values). */}}
{{- define "darter.podLabels" -}}
{{- $own := include "darter.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "darter" -}}
{{- merge $own (default dict .own) (default dict .more) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The annotations of an object. Argument: root, own (a map, may be missing), more (the same from values). */}}
{{- define "darter.annotations" -}}
{{- with merge (dict) (default dict .own) (default dict .more) .root.Values.commonAnnotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* A text on new lines, or nothing if it is empty. Argument: text, indent. */}}
{{- define "darter.block" -}}
{{- with .text | trim -}}
{{- . | nindent $.indent -}}
{{- end -}}
{{- end -}}

{{/* The environment of a program. Of several variables with one name the last one stays: those of values override those
of the chart. Argument: own (YAML), common, part (lists from values). */}}
{{- define "darter.env" -}}
{{- $all := concat (.own | fromYamlArray) .common .part -}}
{{- $last := dict -}}
{{- range $i, $e := $all -}}
{{- $_ := set $last $e.name $i -}}
{{- end -}}
{{- $kept := list -}}
{{- range $i, $e := $all -}}
{{- if eq $i (get $last $e.name) -}}
{{- $kept = append $kept $e -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end -}}

{{/* The name of an image. A digest decides alone; the tag is then for people. Argument: root, image. */}}
{{- define "darter.image" -}}
{{- $common := .root.Values.image -}}
{{- $tag := .image.tag | default $common.tag | default .root.Chart.AppVersion | replace "+" "-" -}}
{{- $registry := .image.registry | default $common.registry -}}
{{- $name := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) -}}
{{- if .image.digest -}}
{{- printf "%s:%s@%s" $name $tag .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name $tag -}}
{{- end -}}
{{- end -}}

{{- define "darter.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The size of the volume for a cache, in GiB: journals, spools and the file system itself need room beside the
quota. Argument: cache. */}}
{{- define "darter.volumeGiB" -}}
{{- if .volumeGiB -}}
{{- if lt (int .volumeGiB) (int .sizeGiB) -}}
{{- fail (printf "supernode.cache.volumeGiB is %d and smaller than sizeGiB, %d: the volume would run full before the quota does" (int .volumeGiB) (int .sizeGiB)) -}}
{{- end -}}
{{- int .volumeGiB -}}
{{- else -}}
{{- add (div (mul (int .sizeGiB) 115) 100) 2 -}}
{{- end -}}
{{- end -}}

{{/* How long Kubernetes waits between SIGTERM and SIGKILL: the drain, and the time to close the store. */}}
{{- define "darter.gracePeriod" -}}
{{- add (int .) 15 -}}
{{- end -}}

{{/* The address at which dfdaemons and supernodes find supernodes. It is headless, so that owners see the addresses of
the hosts and not the one of a proxy. */}}
{{- define "darter.supernodeHost" -}}
{{- printf "%s.%s.svc" (include "darter.supernode" .) .Release.Namespace -}}
{{- end -}}

{{/* Settings that both programs have, from values. Argument: root, part (the values of a program). */}}
{{- define "darter.commonSettings" -}}
upstreams:
  {{- toYaml .root.Values.upstreams | nindent 2 }}
allowUnlisted: {{ .root.Values.allowUnlisted }}
cluster:
  secretFile: /etc/darter-cluster/secret
drainTimeout: {{ int .part.drainSeconds }}s
{{- end -}}

{{- define "darter.supernodeSettings" -}}
{{- $part := .Values.supernode -}}
{{- $own := include "darter.commonSettings" (dict "root" . "part" $part) | fromYaml -}}
{{- $_ := set $own "api" (dict "listen" ":65000") -}}
{{- $_ := set $own "health" (dict "listen" ":65009") -}}
{{- $_ := set $own "peer" (dict "listen" ":65004") -}}
{{- $_ := set $own "gossip" (dict "listen" ":65006" "join" (list (printf "%s:65006" (include "darter.supernodeHost" .)))) -}}
{{- $_ := set $own "cache" (dict "quota" (printf "%dGiB" (int $part.cache.sizeGiB))) -}}
{{- mergeOverwrite (deepCopy $part.settings) $own | toYaml -}}
{{- end -}}

{{- define "darter.dfdaemonSettings" -}}
{{- $part := .Values.dfdaemon -}}
{{- $own := include "darter.commonSettings" (dict "root" . "part" $part) | fromYaml -}}
{{- $_ := set $own "mirror" (dict "listen" (printf "127.0.0.1:%d" (int $part.ports.mirror))) -}}
{{- $_ := set $own "api" (dict "listen" (printf "127.0.0.1:%d" (int $part.ports.api))) -}}
{{- $_ := set $own "peer" (dict "listen" (printf ":%d" (int $part.ports.peer))) -}}
{{- $_ := set $own "supernodes" (list (printf "%s:65000" (include "darter.supernodeHost" .))) -}}
{{- if $part.cache.sizeGiB -}}
{{- $_ := set $own "cache" (dict "quota" (printf "%dGiB" (int $part.cache.sizeGiB))) -}}
{{- end -}}
{{- mergeOverwrite (deepCopy $part.settings) $own | toYaml -}}
{{- end -}}

{{/* What "dfdaemon configure" reads. It leaves out files of the pod: the runtime of the node cannot read them, and has
certificates of its own. */}}
{{- define "darter.configureSettings" -}}
{{- $list := list -}}
{{- range .Values.upstreams -}}
{{- $list = append $list (ternary . (pick (ternary (dict) . (kindIs "string" .)) "host" "urls" "plainHTTP") (kindIs "string" .)) -}}
{{- end -}}
mirror:
  listen: 127.0.0.1:{{ int .Values.dfdaemon.ports.mirror }}
upstreams:
  {{- toYaml $list | nindent 2 }}
{{- end -}}

{{/* The arguments of "dfdaemon configure" for the runtime of the nodes. */}}
{{- define "darter.configureArgs" -}}
- configure
- {{ .Values.runtime }}
- --config=/etc/darter/configure.yaml
- --root=/host
{{- if eq .Values.runtime "containerd" }}
- --hosts-only
{{- with .Values.nodeConfig.containerdHostsDir }}
- --hosts-dir={{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The directory of a node that holds the files that configure writes. */}}
{{- define "darter.configureDir" -}}
{{- if and (eq .Values.runtime "containerd") .Values.nodeConfig.containerdHostsDir -}}
{{- .Values.nodeConfig.containerdHostsDir -}}
{{- else -}}
{{- get (dict "containerd" "/etc/containerd" "crio" "/etc/containers" "docker" "/etc/docker") .Values.runtime -}}
{{- end -}}
{{- end -}}

{{/* The zone of a program. Argument: root, zone (a fixed one, may be empty). */}}
{{- define "darter.zoneEnv" -}}
- name: DARTER_NODE_ZONE
{{- if .zone }}
  value: {{ .zone | quote }}
{{- else if .root.Values.zone.name }}
  value: {{ .root.Values.zone.name | quote }}
{{- else }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['{{ .root.Values.zone.label }}']
{{- end }}
{{- end -}}

{{/* What the downward API tells a supernode. The brackets suit IPv6 and IPv4. */}}
{{- define "darter.supernodeEnv" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: DARTER_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{ include "darter.zoneEnv" (dict "root" . "zone" "") }}
- {name: DARTER_NODE_DATA_DIR, value: /var/lib/darter}
- {name: DARTER_API_ADVERTISE, value: "[$(POD_IP)]:65000"}
- {name: DARTER_PEER_ADVERTISE, value: "[$(POD_IP)]:65004"}
- {name: DARTER_GOSSIP_ADVERTISE, value: "[$(POD_IP)]:65006"}
{{- end -}}

{{/* What the downward API tells a dfdaemon. Argument: root, zone. */}}
{{- define "darter.dfdaemonEnv" -}}
- name: HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: DARTER_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{ include "darter.zoneEnv" . }}
- {name: DARTER_NODE_DATA_DIR, value: /var/lib/darter}
- {name: DARTER_PEER_ADVERTISE, value: "[$(HOST_IP)]:{{ int .root.Values.dfdaemon.ports.peer }}"}
- {name: DARTER_HEALTH_LISTEN, value: "[$(HOST_IP)]:{{ int .root.Values.dfdaemon.ports.health }}"}
{{- end -}}

{{/* Where pods of a program may run. Argument: the values of a program. */}}
{{- define "darter.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The probes of a program. A start may take minutes: after an unclean stop the store hashes its last pieces. A
program that lacks CPU time is slow and not broken, so it takes a minute of silence until the kubelet restarts it. */}}
{{- define "darter.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}
