package charts

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/darter-io/darter/pkg/config"
)

// sets are values that users set, each with its purpose.
var sets = map[string]string{
	"defaults": ``,
	"a private registry with its files": `
upstreams:
  - docker.io=https://hub-cache.example
  - {host: "registry.example:5000", ca: /certs/ca.crt, dockerConfig: /login/.dockerconfigjson, access: cluster, firstByte: 2m}
  - {host: plain.example, plainHTTP: true}
extraVolumes:
  - {name: certs, configMap: {name: registry-ca}}
  - {name: login, secret: {secretName: registry-login, defaultMode: 0400}}
extraVolumeMounts:
  - {name: certs, mountPath: /certs, readOnly: true}
  - {name: login, mountPath: /login, readOnly: true}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy.example:3128"}]
`,
	"all settings": `
supernode:
  settings:
    limits: {origin: 500MiB/s, upload: unlimited, download: 1Gbit/s, task: 100MB/s}
    cache: {highWater: 0.9, lowWater: 0.8}
    peer: {uploadSlots: 24}
    files: {allowHosts: ["*.example"], allowAddresses: [10.0.0.0/8], ca: /certs/ca.crt, proxy: none}
    log: {level: debug, format: json}
dfdaemon:
  drainSeconds: 45
  settings:
    mirror:
      defaultUpstream: quay.io
      listeners: ["127.0.0.1:65010=quay.io", {listen: "127.0.0.1:65011", upstream: ghcr.io}]
      rightsLife: 30m
      rightsUnreachable: serve-cached
      tagLife: 1m
      tagStale: 24h
      publicUnreachable: 1h30m
      clusterTags: 72h
    proxy: {listen: "127.0.0.1:65007", hosts: [quay.io], tunnel: listed, tunnelHosts: [auth.example], tunnelPorts: [8443]}
    limits: {upload: 800Mbit/s}
    cache: {highWater: 0.9, lowWater: 0.8}
    peer: {standby: false, uploadSlots: 6}
    files: {allowHosts: [], ignoreQuery: [sig]}
    log: {level: warn, format: json}
`,
	"volumes that outlive pods": `supernode: {replicas: 3, cache: {sizeGiB: 200, volume: pvc, storageClass: fast, whenDeleted: Retain}}`,
	"one supernode":             `supernode: {replicas: 1, cache: {volumeGiB: 40}}`,
	"CRI-O":                     `runtime: crio`,
	"Docker":                    `runtime: docker`,
	"no runtime":                `{runtime: none, allowUnlisted: true}`,
	"hosts.toml elsewhere":      `nodeConfig: {containerdHostsDir: /etc/cri/conf.d/hosts, digestsOnly: true}`,
	"no cleanup":                `nodeConfig: {cleanup: {enabled: false}}`,
	"zones by name":             `zone: {names: [zone-a, zone-b]}`,
	"one zone":                  `zone: {name: rack-7}`,
	"an existing secret":        `cluster: {existingSecret: theirs, secretKey: password}`,
	"images by digest": `
image: {registry: "registry.example:5000/mirror", pullPolicy: Always}
imagePullSecrets: [{name: regcred}]
supernode: {image: {digest: "sha256:` + strings.Repeat("a", 64) + `"}}
dfdaemon: {image: {registry: other.example, tag: v1.2.3, digest: "sha256:` + strings.Repeat("b", 64) + `"}}
`,
	"everything on": `
nameOverride: images
commonLabels: {team: platform}
commonAnnotations: {example.com/owner: platform}
serviceAccount: {annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::1:role/pull"}}
resourceQuota: {enabled: true, pods: 500}
extraEnvFrom: [{secretRef: {name: proxy}}]
monitoring:
  podMonitor: {enabled: true, labels: {release: prometheus}, interval: 30s, scrapeTimeout: 10s,
    relabelings: [{action: labeldrop, regex: pod_template_hash}], metricRelabelings: [{action: keep, regex: "darter_.*", sourceLabels: [__name__]}]}
  prometheusRule: {enabled: true, labels: {release: prometheus}, additionalRules: [{alert: Mine, expr: vector(1)}]}
supernode: &part
  podLabels: {a: b}
  podAnnotations: {c: d}
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{key: dedicated, operator: Equal, value: infra, effect: NoSchedule}]
  affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}]}}
  priorityClassName: system-cluster-critical
  hostAliases: [{ip: 192.0.2.1, hostnames: [registry.example]}]
  extraArgs: [--log-level=debug]
  extraEnv: [{name: AUTOMEMLIMIT, value: "0.8"}]
  extraEnvFrom: [{configMapRef: {name: more}}]
  extraVolumes: [{name: more, emptyDir: {}}]
  extraVolumeMounts: [{name: more, mountPath: /more}]
dfdaemon:
  <<: *part
  maxUnavailable: 1
  ports: {mirror: 5001, peer: 5002, api: 5003, health: 5008}
  cache: {sizeGiB: 0, hostPath: /data/darter}
`,
}

// render renders the chart for a release in the namespace "images".
func render(name, values string) (map[string][]byte, error) {
	return Release{Name: name, Namespace: "images", Values: values}.Render()
}

// release renders and decodes the chart, or fails the test.
func release(t *testing.T, name, values string) Objects {
	t.Helper()
	docs, err := render(name, values)
	require.NoError(t, err)
	o, err := Decode(docs)
	require.NoError(t, err)
	return o
}

// eachSet runs a test with each set of values.
func eachSet(t *testing.T, test func(*testing.T, Objects)) {
	for name, values := range sets {
		t.Run(name, func(t *testing.T) { test(t, release(t, "darter", values)) })
	}
}

func TestLint(t *testing.T) {
	version, err := common.ParseKubeVersion(kubeVersion)
	require.NoError(t, err)
	for name, text := range sets {
		t.Run(name, func(t *testing.T) {
			values, err := Values(text)
			require.NoError(t, err)
			for _, m := range lint.RunAll(Dir, values, "images", lint.WithKubeVersion(version)).Messages {
				assert.Less(t, m.Severity, support.WarningSev, m.Error())
			}
		})
	}
}

// The schema refuses what cannot work, and names the key.
func TestSchemaRefuses(t *testing.T) {
	for values, says := range map[string]string{
		`supernod: {}`:                                        "supernod",
		`dfdaemon: {cach: {}}`:                                "cach",
		`dfdaemon: {cache: {quota: 20GiB}}`:                   "quota",
		`runtime: cri-o`:                                      "runtime",
		`upstreams: []`:                                       "upstreams",
		`upstreams: [quay.io/org]`:                            "upstreams",
		`upstreams: [https://quay.io]`:                        "upstreams",
		`upstreams: [quay.io, quay.io]`:                       "upstreams",
		`upstreams: [{host: quay.io, url: x}]`:                "upstreams",
		`upstreams: [{urls: [https://quay.io]}]`:              "upstreams",
		`upstreams: [{host: quay.io, urls: [quay.io]}]`:       "upstreams",
		`upstreams: [{host: quay.io, ca: certs/ca.crt}]`:      "upstreams",
		`upstreams: [{host: quay.io, access: all}]`:           "upstreams",
		`upstreams: quay.io`:                                  "upstreams",
		`dfdaemon: {resources: {limits: {cpu: 1}}}`:           "cpu",
		`supernode: {resources: {limits: {cpu: 500m}}}`:       "cpu",
		`supernode: {resources: {requests: {memory: 1 GB}}}`:  "memory",
		`supernode: {replicas: 0}`:                            "replicas",
		`supernode: {replicas: "2"}`:                          "replicas",
		`supernode: {cache: {sizeGiB: 20Gi}}`:                 "sizeGiB",
		`supernode: {cache: {sizeGiB: 0}}`:                    "sizeGiB",
		`supernode: {cache: {volume: hostPath}}`:              "volume",
		`supernode: {cache: {whenDeleted: keep}}`:             "whenDeleted",
		`supernode: {drainSeconds: 20s}`:                      "drainSeconds",
		`supernode: {drainSeconds: -1}`:                       "drainSeconds",
		`supernode: {settings: {drainTimeout: 1h}}`:           "drainTimeout",
		`supernode: {settings: {gossip: {listen: ":1"}}}`:     "gossip",
		`supernode: {settings: {upstreams: [quay.io]}}`:       "upstreams",
		`supernode: {settings: {cache: {quota: 1GiB}}}`:       "quota",
		`supernode: {settings: {limits: {origin: 500mb}}}`:    "origin",
		`supernode: {settings: {log: {level: loud}}}`:         "level",
		`dfdaemon: {settings: {mirror: {listen: ":80"}}}`:     "listen",
		`dfdaemon: {settings: {mirror: {tagLife: 10}}}`:       "tagLife",
		`dfdaemon: {settings: {mirror: {tagLive: 10s}}}`:      "tagLive",
		`dfdaemon: {settings: {cluster: {insecure: true}}}`:   "cluster",
		`dfdaemon: {settings: {peer: {uploadSlots: 5000}}}`:   "uploadSlots",
		`dfdaemon: {ports: {mirror: 0}}`:                      "mirror",
		`dfdaemon: {ports: {mirror: 70000}}`:                  "mirror",
		`dfdaemon: {ports: {metrics: 9090}}`:                  "metrics",
		`dfdaemon: {cache: {hostPath: var/lib/darter}}`:       "hostPath",
		`dfdaemon: {cache: {hostPath: /var/lib/../etc}}`:      "hostPath",
		`dfdaemon: {cache: {hostPath: /}}`:                    "hostPath",
		`dfdaemon: {maxUnavailable: 0}`:                       "maxUnavailable",
		`dfdaemon: {maxUnavailable: 0%}`:                      "maxUnavailable",
		`dfdaemon: {image: {digest: "sha256:abc"}}`:           "digest",
		`dfdaemon: {image: {repository: ""}}`:                 "repository",
		`dfdaemon: {image: {tag: "v1 2"}}`:                    "tag",
		`dfdaemon: {tolerations: {operator: Exists}}`:         "tolerations",
		`dfdaemon: {tolerations: [{operator: Exist}]}`:        "tolerations",
		`dfdaemon: {extraArgs: ["log-level debug"]}`:          "extraArgs",
		`dfdaemon: {extraEnv: [{value: x}]}`:                  "extraEnv",
		`dfdaemon: {extraEnv: {A: b}}`:                        "extraEnv",
		`dfdaemon: {hostAliases: [{ip: 192.0.2.1}]}`:          "hostAliases",
		`image: {pullPolicy: Sometimes}`:                      "pullPolicy",
		`image: {repository: x}`:                              "repository",
		`imagePullSecrets: [regcred]`:                         "imagePullSecrets",
		`cluster: {secret: "0123456789"}`:                     "secret",
		`cluster: {existingSecret: Theirs}`:                   "existingSecret",
		`commonLabels: {team: "a b"}`:                         "team",
		`fullnameOverride: Darter`:                            "fullnameOverride",
		`nodeConfig: {restart: true}`:                         "restart",
		`nodeConfig: {containerdHostsDir: certs.d}`:           "containerdHostsDir",
		`nodeConfig: {cleanup: {timeoutSeconds: 1}}`:          "timeoutSeconds",
		`zone: {names: [Zone A]}`:                             "names",
		`zone: {name: a, names: [b]}`:                         "zone",
		`zone: {label: "a label"}`:                            "label",
		`monitoring: {serviceMonitor: {enabled: true}}`:       "serviceMonitor",
		`monitoring: {podMonitor: {interval: often}}`:         "interval",
		`supernode: {networkPolicy: {healthFrom: [all]}}`:     "healthFrom",
		`supernode: {podDisruptionBudget: {minAvailable: 1}}`: "minAvailable",
		`resourceQuota: {enabled: "yes"}`:                     "enabled",
		`serviceAccount: {create: 1}`:                         "create",
	} {
		t.Run(values, func(t *testing.T) {
			_, err := render("darter", values)
			require.Error(t, err)
			assert.Contains(t, err.Error(), says)
			assert.Contains(t, err.Error(), "schema")
		})
	}
}

// Values that a schema cannot compare contradict each other.
func TestTemplatesRefuse(t *testing.T) {
	for values, says := range map[string]string{
		`dfdaemon: {ports: {mirror: 65002}}`:                                               "two of the four ports are equal",
		`supernode: {cache: {sizeGiB: 50, volumeGiB: 40}}`:                                 "smaller than sizeGiB",
		`{zone: {names: [a]}, dfdaemon: {affinity: {nodeAffinity: {}}}}`:                   "zone.names",
		`{zone: {names: [a]}, dfdaemon: {nodeSelector: {topology.kubernetes.io/zone: a}}}`: "zone.names",
	} {
		t.Run(values, func(t *testing.T) {
			_, err := render("darter", values)
			assert.ErrorContains(t, err, says)
		})
	}
}

// Every container is as narrow as its work allows.
func TestContainers(t *testing.T) {
	eachSet(t, func(t *testing.T, o Objects) {
		for _, w := range o.Pods {
			pod := w.Template.Spec
			at := w.Kind + " " + w.Name
			require.NotNil(t, pod.SecurityContext, at)
			require.NotNil(t, pod.SecurityContext.SeccompProfile, at)
			assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type, at)
			require.NotNil(t, pod.AutomountServiceAccountToken, at)
			assert.Equal(t, w.Kind == "Job", *pod.AutomountServiceAccountToken, at)
			require.NotNil(t, pod.EnableServiceLinks, at)
			assert.False(t, *pod.EnableServiceLinks, at)
			assert.False(t, pod.HostPID || pod.HostIPC, at)
			if component := w.Template.Labels["app.kubernetes.io/component"]; component != "dfdaemon" && component != "cleanup" {
				require.NotNil(t, pod.SecurityContext.RunAsNonRoot, at)
				assert.True(t, *pod.SecurityContext.RunAsNonRoot, at)
			}
			for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
				at := at + " " + c.Name
				s := c.SecurityContext
				require.NotNil(t, s, at)
				require.NotNil(t, s.ReadOnlyRootFilesystem, at)
				assert.True(t, *s.ReadOnlyRootFilesystem, at)
				require.NotNil(t, s.AllowPrivilegeEscalation, at)
				assert.False(t, *s.AllowPrivilegeEscalation, at)
				require.NotNil(t, s.Capabilities, at)
				assert.Equal(t, []corev1.Capability{"ALL"}, s.Capabilities.Drop, at)
				assert.Empty(t, s.Capabilities.Add, at)
				assert.Nil(t, s.Privileged, at)
				assert.NotContains(t, c.Resources.Limits, corev1.ResourceCPU, at)
				assert.Contains(t, c.Resources.Limits, corev1.ResourceMemory, at)
				assert.Contains(t, c.Resources.Requests, corev1.ResourceCPU, at)
				assert.Contains(t, c.Resources.Requests, corev1.ResourceMemory, at)
				checkMounts(t, at, w, c)
			}
		}
	})
}

// checkMounts checks that each mount has a volume, and each path one mount.
func checkMounts(t *testing.T, at string, w Workload, c corev1.Container) {
	volumes := map[string]bool{}
	for _, v := range w.Template.Spec.Volumes {
		assert.False(t, volumes[v.Name], "%s: the volume %s is there twice", at, v.Name)
		volumes[v.Name] = true
	}
	for _, v := range w.Claims {
		volumes[v.Name] = true
	}
	paths := map[string]bool{}
	for _, m := range c.VolumeMounts {
		assert.True(t, volumes[m.Name], "%s: no volume %s", at, m.Name)
		assert.False(t, paths[m.MountPath], "%s: two mounts at %s", at, m.MountPath)
		paths[m.MountPath] = true
	}
}

// program is a rendered program: its container and the settings that it reads.
type program struct {
	Workload
	container  corev1.Container
	dfdaemon   config.Dfdaemon
	supernode  config.Supernode
	drain      time.Duration
	healthPort string
}

// fields are what a kubelet fills in.
func fields(ip string) map[string]string {
	return map[string]string{"status.podIP": ip, "status.hostIP": ip, "metadata.name": "darter-supernode-0",
		"spec.nodeName": "node-1", "metadata.labels['topology.kubernetes.io/zone']": "zone-a"}
}

// load reads the settings of a program as it does in its pod: the file, the variables and the arguments.
func load(t *testing.T, o Objects, w Workload, ip string) program {
	c := w.Template.Spec.Containers[0]
	p := program{Workload: w, container: c}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600))
	configMap := ""
	for _, v := range w.Template.Spec.Volumes {
		if v.Name == "config" {
			configMap = v.ConfigMap.Name
		}
	}
	files := objects[*corev1.ConfigMap](o)
	require.Contains(t, files, configMap)
	for name, text := range files[configMap].Data {
		assert.NotContains(t, text, "0123456789abcdef")
		text = strings.ReplaceAll(text, "/etc/darter-cluster/secret", secret)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	env, values := []string{}, map[string]string{}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			var known bool
			value, known = fields(ip)[e.ValueFrom.FieldRef.FieldPath]
			require.True(t, known, e.ValueFrom.FieldRef.FieldPath)
		}
		value = regexp.MustCompile(`\$\((\w+)\)`).ReplaceAllStringFunc(value, func(ref string) string {
			earlier, known := values[ref[2:len(ref)-1]]
			require.True(t, known, "%s comes before %s", e.Name, ref)
			return earlier
		})
		values[e.Name] = value
		env = append(env, e.Name+"="+value)
	}
	var target any = &p.dfdaemon
	if c.Name == "supernode" {
		target = &p.supernode
	}
	form := config.NewForm(c.Name, target)
	flags := pflag.NewFlagSet(c.Name, pflag.ContinueOnError)
	form.Bind(flags)
	var args []string
	for _, a := range c.Args {
		args = append(args, strings.ReplaceAll(a, "/etc/darter", dir))
	}
	require.NoError(t, flags.Parse(args))
	require.NoError(t, form.Load(env))
	p.drain, p.healthPort = p.dfdaemon.DrainTimeout, p.dfdaemon.Health.Listen.Port()
	if c.Name == "supernode" {
		p.drain, p.healthPort = p.supernode.DrainTimeout, p.supernode.Health.Listen.Port()
	}
	if c.Name == "dfdaemon" && w.Template.Spec.InitContainers != nil {
		// What configure reads needs no secret.
		var node config.Dfdaemon
		form := config.NewForm("dfdaemon", &node)
		flags := pflag.NewFlagSet("configure", pflag.ContinueOnError)
		form.Bind(flags)
		require.NoError(t, flags.Parse([]string{"--config=" + filepath.Join(dir, "configure.yaml")}))
		require.NoError(t, form.Load(nil))
		assert.Equal(t, p.dfdaemon.Mirror.Listen, node.Mirror.Listen)
		require.Len(t, node.Upstreams, len(p.dfdaemon.Upstreams))
		for i, u := range node.Upstreams {
			assert.Equal(t, p.dfdaemon.Upstreams[i].Host, u.Host)
			assert.Empty(t, u.CA+u.ClientCert+u.DockerConfig+u.PasswordFile, "the node has no such files")
		}
	}
	return p
}

// Programs accept their settings, and what the chart says elsewhere follows from them.
func TestSettings(t *testing.T) {
	for _, ip := range []string{"10.0.0.7", "fd00::7"} {
		eachSet(t, func(t *testing.T, o Objects) {
			t.Log("the address is", ip)
			for _, component := range []string{"supernode", "dfdaemon"} {
				require.NotEmpty(t, o.part(component))
				for _, w := range o.part(component) {
					p := load(t, o, w, ip)
					pod := w.Template.Spec
					grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
					assert.GreaterOrEqual(t, grace, p.drain+10*time.Second, "Kubernetes kills a pod that still drains")
					checkProbes(t, p)
					if component == "supernode" {
						checkSupernode(t, o, p, ip)
					} else {
						checkDfdaemon(t, o, p, ip)
					}
				}
			}
		})
	}
}

// checkProbes checks that the kubelet asks the health port.
func checkProbes(t *testing.T, p program) {
	port := 0
	for _, c := range p.container.Ports {
		if c.Name == "health" {
			port = int(c.ContainerPort)
		}
	}
	assert.Equal(t, p.healthPort, strconv.Itoa(port))
	for path, probe := range map[string]*corev1.Probe{"/healthz": p.container.LivenessProbe, "/readyz": p.container.ReadinessProbe} {
		require.NotNil(t, probe)
		assert.Equal(t, path, probe.HTTPGet.Path)
		assert.Equal(t, "health", probe.HTTPGet.Port.String())
	}
	start := p.container.StartupProbe
	require.NotNil(t, start)
	assert.GreaterOrEqual(t, start.PeriodSeconds*start.FailureThreshold, int32(300))
}

func checkSupernode(t *testing.T, o Objects, p program, ip string) {
	cfg := p.supernode
	assert.Equal(t, net.JoinHostPort(ip, "65000"), string(cfg.API.Advertise))
	assert.Equal(t, net.JoinHostPort(ip, "65004"), string(cfg.Peer.Advertise))
	assert.Equal(t, net.JoinHostPort(ip, "65006"), string(cfg.Gossip.Advertise))
	assert.False(t, cfg.Cluster.Insecure)
	service := objects[*corev1.Service](o)[p.Name]
	require.NotNil(t, service)
	assert.Equal(t, corev1.ClusterIPNone, service.Spec.ClusterIP)
	assert.True(t, service.Spec.PublishNotReadyAddresses)
	assert.True(t, labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(p.Template.Labels)))
	assert.Equal(t, []config.Address{config.Address(service.Name + ".images.svc:65006")}, cfg.Gossip.Join)
	ports := map[string]string{}
	for _, c := range p.container.Ports {
		ports[c.Name+"/"+string(c.Protocol)] = strconv.Itoa(int(c.ContainerPort))
	}
	for _, s := range service.Spec.Ports {
		assert.Equal(t, strconv.Itoa(int(s.Port)), ports[s.TargetPort.String()+"/"+string(s.Protocol)])
	}
	assert.Equal(t, map[string]string{"api/TCP": cfg.API.Listen.Port(), "peer/TCP": cfg.Peer.Listen.Port(),
		"gossip-tcp/TCP": cfg.Gossip.Listen.Port(), "gossip-udp/UDP": cfg.Gossip.Listen.Port(),
		"health/TCP": cfg.Health.Listen.Port()}, ports)

	size := int64(0)
	for _, v := range p.Template.Spec.Volumes {
		if v.EmptyDir != nil && v.Name == "data" {
			size = v.EmptyDir.SizeLimit.Value()
		}
	}
	for _, c := range p.Claims {
		storage := c.Spec.Resources.Requests[corev1.ResourceStorage]
		size = storage.Value()
	}
	assert.GreaterOrEqual(t, size, int64(cfg.Cache.Quota)*11/10, "the volume is full before the quota")

	for _, policy := range objects[*networkingv1.NetworkPolicy](o) {
		assert.True(t, labels.SelectorFromSet(policy.Spec.PodSelector.MatchLabels).Matches(labels.Set(p.Template.Labels)))
		for _, rule := range policy.Spec.Ingress {
			for _, port := range rule.Ports {
				assert.Contains(t, ports, port.Port.String()+"/"+string(*port.Protocol))
			}
		}
	}
	for _, budget := range objects[*policyv1.PodDisruptionBudget](o) {
		assert.True(t, labels.SelectorFromSet(budget.Spec.Selector.MatchLabels).Matches(labels.Set(p.Template.Labels)))
	}
	assert.Len(t, p.Template.Spec.TopologySpreadConstraints, 2)
}

func checkDfdaemon(t *testing.T, o Objects, p program, ip string) {
	cfg, pod := p.dfdaemon, p.Template.Spec
	assert.True(t, pod.HostNetwork)
	assert.Equal(t, corev1.DNSClusterFirstWithHostNet, pod.DNSPolicy)
	assert.True(t, strings.HasPrefix(pod.PriorityClassName, "system-"))
	assert.True(t, cfg.Mirror.Listen.Loopback())
	assert.Equal(t, net.JoinHostPort(ip, cfg.Peer.Listen.Port()), string(cfg.Peer.Advertise))
	assert.Equal(t, ip, cfg.Health.Listen.Host())
	assert.Equal(t, "node-1", cfg.Node.Name)
	assert.Equal(t, "/var/lib/darter", cfg.Node.DataDir)
	assert.False(t, cfg.Cluster.Insecure)
	supernodes := o.part("supernode")[0]
	assert.Equal(t, []config.Address{config.Address(supernodes.Name + ".images.svc:65000")}, cfg.Supernodes)
	want := map[string]string{"mirror": cfg.Mirror.Listen.Port(), "peer": cfg.Peer.Listen.Port(),
		"api": cfg.API.Listen.Port(), "health": cfg.Health.Listen.Port()}
	for _, c := range p.container.Ports {
		assert.Equal(t, want[c.Name], strconv.Itoa(int(c.ContainerPort)), c.Name)
	}
}

// A secret that the chart does not make is the user's, and no other object holds one.
func TestSecret(t *testing.T) {
	o := release(t, "darter", "")
	made := objects[*corev1.Secret](o)["darter-cluster"]
	require.NotNil(t, made)
	assert.Regexp(t, `^[A-Za-z0-9]{64}$`, string(made.Data["secret"]))
	again := objects[*corev1.Secret](release(t, "darter", ""))["darter-cluster"]
	assert.NotEqual(t, made.Data, again.Data)

	o = release(t, "darter", sets["an existing secret"])
	assert.Empty(t, objects[*corev1.Secret](o))
	for _, w := range slices.Concat(o.part("supernode"), o.part("dfdaemon")) {
		for _, v := range w.Template.Spec.Volumes {
			if v.Secret != nil {
				assert.Equal(t, "theirs", v.Secret.SecretName)
				assert.Equal(t, []corev1.KeyToPath{{Key: "password", Path: "secret"}}, v.Secret.Items)
				assert.Zero(t, *v.Secret.DefaultMode&0o007)
			}
		}
	}
}

// secrets is a cluster that holds Secrets.
type secrets struct{ objects []runtime.Object }

func (s secrets) GetClientFor(version, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if version != "v1" || kind != "Secret" {
		return nil, false, fmt.Errorf("this cluster has no %s %s", version, kind)
	}
	client := fake.NewSimpleDynamicClient(scheme.Scheme, s.objects...)
	return client.Resource(corev1.SchemeGroupVersion.WithResource("secrets")), true, nil
}

// An upgrade keeps the generated secret, whatever lies beside it, and makes no other one for dfdaemons to miss.
func TestUpgradeKeepsTheSecret(t *testing.T) {
	upgraded := func(cluster engine.ClientProvider, values string) string {
		docs, err := Release{Name: "darter", Namespace: "images", Values: values, Upgrade: true, Cluster: cluster}.Render()
		require.NoError(t, err)
		o, err := Decode(docs)
		require.NoError(t, err)
		made := objects[*corev1.Secret](o)["darter-cluster"]
		require.NotNil(t, made)
		require.Len(t, made.Data, 1)
		for _, value := range made.Data {
			return string(value)
		}
		return ""
	}
	secret := func(namespace, key, value string) *corev1.Secret {
		return &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
			ObjectMeta: metav1.ObjectMeta{Name: "darter-cluster", Namespace: namespace},
			Data:       map[string][]byte{key: []byte(value)}}
	}
	old := strings.Repeat("k", 64)
	two := old + "\n" + strings.Repeat("n", 64) // in the middle of a change of the secret
	assert.Equal(t, old, upgraded(secrets{[]runtime.Object{secret("images", "secret", old)}}, ""))
	assert.Equal(t, two, upgraded(secrets{[]runtime.Object{secret("images", "secret", two)}}, ""))
	assert.Equal(t, old, upgraded(secrets{[]runtime.Object{secret("images", "other", old)}}, "cluster: {secretKey: other}"))
	for name, cluster := range map[string]secrets{"none": {}, "another key": {[]runtime.Object{secret("images", "x", old)}},
		"another namespace": {[]runtime.Object{secret("default", "secret", old)}}} {
		assert.Regexp(t, `^[A-Za-z0-9]{64}$`, upgraded(cluster, ""), name)
		assert.NotEqual(t, old, upgraded(cluster, ""), name)
	}
}

// The node is configured by an init container and gets its files back by hooks, whatever its runtime.
func TestNodeConfiguration(t *testing.T) {
	source, err := os.ReadFile("../../cmd/dfdaemon/configure.go")
	require.NoError(t, err)
	for name, c := range map[string]struct{ values, dir, args string }{
		"containerd": {"", "/etc/containerd", "containerd --root=/host --hosts-only"},
		"another directory": {sets["hosts.toml elsewhere"], "/etc/cri/conf.d/hosts",
			"containerd --root=/host --hosts-only --hosts-dir=/etc/cri/conf.d/hosts --digests-only"},
		"CRI-O":  {"runtime: crio", "/etc/containers", "crio --root=/host"},
		"Docker": {"runtime: docker", "/etc/docker", "docker --root=/host"},
	} {
		t.Run(name, func(t *testing.T) {
			o := release(t, "darter", c.values)
			for component, args := range map[string]string{"dfdaemon": c.args,
				"cleanup": strings.TrimSuffix(c.args, " --digests-only") + " --remove"} {
				require.Len(t, o.part(component), 1)
				pod := o.part(component)[0].Template.Spec
				require.Len(t, pod.InitContainers, 1)
				run := pod.InitContainers[0]
				want := slices.Insert(strings.Fields("configure "+args), 2, "--config=/etc/darter/configure.yaml")
				assert.Equal(t, want, run.Args)
				for _, flag := range run.Args[3:] {
					name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
					assert.True(t, strings.Contains(string(source), strconv.Quote(name)), "dfdaemon configure has no flag %s", flag)
				}
				var mounted []string
				for _, m := range run.VolumeMounts {
					if !m.ReadOnly {
						mounted = append(mounted, m.MountPath)
					}
				}
				assert.Equal(t, []string{"/host" + c.dir}, mounted, "it writes to this directory alone")
				for _, v := range pod.Volumes {
					if v.Name == "runtime" {
						assert.Equal(t, c.dir, v.HostPath.Path)
					}
				}
				for _, m := range pod.Containers[0].VolumeMounts {
					assert.NotEqual(t, "runtime", m.Name, "dfdaemon itself reaches no files of the runtime")
				}
			}
		})
	}
	o := release(t, "darter", "runtime: none")
	assert.Empty(t, o.part("dfdaemon")[0].Template.Spec.InitContainers)
	assert.Empty(t, hooks(o))
	assert.Empty(t, hooks(release(t, "darter", sets["no cleanup"])))
}

// hooks returns the hooks of Helm with their weights.
func hooks(o Objects) map[string]int {
	out := map[string]int{}
	for _, one := range o.All {
		meta := one.(metav1.Object)
		if meta.GetAnnotations()["helm.sh/hook"] == "" {
			continue
		}
		weight, _ := strconv.Atoi(meta.GetAnnotations()["helm.sh/hook-weight"])
		out[fmt.Sprintf("%T", one)] = weight
	}
	return out
}

// The hooks come after the release has ended, those that others need first, and reach the same nodes.
func TestCleanup(t *testing.T) {
	eachSet(t, func(t *testing.T, o Objects) {
		for _, one := range o.All {
			if hook := one.(metav1.Object).GetAnnotations()["helm.sh/hook"]; hook != "" {
				assert.Equal(t, "post-delete", hook)
			}
		}
		order := hooks(o)
		if len(order) == 0 {
			return
		}
		assert.Len(t, order, 6)
		for _, needed := range []string{"*v1.ServiceAccount", "*v1.Role", "*v1.RoleBinding", "*v1.ConfigMap"} {
			assert.Less(t, order[needed], order["*v1.DaemonSet"], needed)
		}
		assert.Less(t, order["*v1.DaemonSet"], order["*v1.Job"])
		clean, dfdaemon := o.part("cleanup")[0], o.part("dfdaemon")[0]
		assert.Equal(t, dfdaemon.Template.Spec.Tolerations, clean.Template.Spec.Tolerations)
		wait := o.part("cleanup-wait")[0].Template.Spec.Containers[0]
		assert.Equal(t, []string{"await", "daemonset/images/" + clean.Name, "--timeout=240s"}, wait.Args)
	})
}

// No controller takes the pods of another one, and each DaemonSet of zone.names knows its zone.
func TestSelectors(t *testing.T) {
	eachSet(t, func(t *testing.T, o Objects) {
		for _, a := range o.Pods {
			for _, b := range o.Pods {
				if a.Selector == nil {
					continue
				}
				matches := labels.SelectorFromSet(a.Selector).Matches(labels.Set(b.Template.Labels))
				assert.Equal(t, a.Kind+a.Name == b.Kind+b.Name, matches, "%s %s and %s %s", a.Kind, a.Name, b.Kind, b.Name)
			}
		}
	})
	o := release(t, "darter", sets["zones by name"])
	require.Len(t, o.part("dfdaemon"), 3)
	for _, w := range o.part("dfdaemon") {
		p := load(t, o, w, "10.0.0.7")
		switch zone := w.Template.Spec.NodeSelector["topology.kubernetes.io/zone"]; zone {
		case "":
			terms := w.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
			require.Len(t, terms, 1)
			assert.Equal(t, []corev1.NodeSelectorRequirement{{Key: "topology.kubernetes.io/zone", Operator: "NotIn",
				Values: []string{"zone-a", "zone-b"}}}, terms[0].MatchExpressions)
		default:
			assert.Equal(t, zone, p.dfdaemon.Node.Zone)
		}
	}
	o = release(t, "darter", sets["one zone"])
	assert.Equal(t, "rack-7", load(t, o, o.part("dfdaemon")[0], "10.0.0.7").dfdaemon.Node.Zone)
}

func TestImages(t *testing.T) {
	o := release(t, "darter", sets["images by digest"])
	image := func(component string) string { return o.part(component)[0].Template.Spec.Containers[0].Image }
	assert.Equal(t, "registry.example:5000/mirror/darter-io/supernode:v0.0.0@sha256:"+strings.Repeat("a", 64), image("supernode"))
	assert.Equal(t, "other.example/darter-io/dfdaemon:v1.2.3@sha256:"+strings.Repeat("b", 64), image("dfdaemon"))
	for _, w := range o.Pods {
		assert.Equal(t, []corev1.LocalObjectReference{{Name: "regcred"}}, w.Template.Spec.ImagePullSecrets, w.Name)
	}
	o = release(t, "darter", "")
	assert.Equal(t, "ghcr.io/darter-io/supernode:v0.0.0", image("supernode"))
}

// Names stay short enough for labels and Services, however long the release's is.
func TestNames(t *testing.T) {
	o := release(t, strings.Repeat("long-name-", 5)+"end", "")
	for file, one := range o.All {
		name := one.(metav1.Object).GetName()
		assert.LessOrEqual(t, len(name), 52, file)
		assert.Equal(t, "images", one.(metav1.Object).GetNamespace(), file)
		for key, value := range one.(metav1.Object).GetLabels() {
			assert.LessOrEqual(t, len(value), 63, key)
		}
	}
	assert.Contains(t, objects[*corev1.Service](release(t, "darter", "")), "darter-supernode")
	assert.Contains(t, objects[*corev1.Service](release(t, "prod", "")), "prod-darter-supernode")
}

// The notes say which registries are mirrored, and which command the runtime still needs.
func TestNotes(t *testing.T) {
	notes := release(t, "darter", "").Notes
	assert.Contains(t, notes, "- quay.io\n")
	assert.Contains(t, notes, "daemonset/darter-dfdaemon")
	assert.Contains(t, release(t, "darter", "runtime: crio").Notes, "systemctl reload crio")
	assert.Contains(t, release(t, "darter", "runtime: docker").Notes, "systemctl reload docker")
	assert.Contains(t, release(t, "darter", "runtime: none").Notes, "http://127.0.0.1:65001")
	assert.NotContains(t, release(t, "darter", sets["an existing secret"]).Notes, "helm template")
}

var metricName = regexp.MustCompile("`(darter_[a-z_]+)`")

// The alerts parse, and ask for metrics that docs/metrics.md lists, which a test compares with the programs.
func TestAlerts(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	known := map[string]bool{}
	for _, m := range metricName.FindAllStringSubmatch(string(page), -1) {
		known[m[1]] = true
	}
	docs, err := render("darter", sets["everything on"])
	require.NoError(t, err)
	o, err := Decode(docs)
	require.NoError(t, err)
	rule := objects[*monitoring.PrometheusRule](o)["darter-images"]
	require.NotNil(t, rule)
	groups, err := yaml.Marshal(specOf(t, docs, "prometheusrule.yaml"))
	require.NoError(t, err)
	promql := parser.NewParser(parser.Options{})
	_, problems := rulefmt.Parse(groups, false, model.UTF8Validation, promql, nil)
	assert.Empty(t, problems)
	alerts := 0
	for _, r := range rule.Spec.Groups[0].Rules {
		if r.Alert == "Mine" {
			continue
		}
		alerts++
		expr, err := promql.ParseExpr(r.Expr.String())
		require.NoError(t, err, r.Alert)
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			if v, ok := n.(*parser.VectorSelector); ok {
				assert.True(t, known[v.Name], "%s: no program has the metric %s", r.Alert, v.Name)
				for _, m := range v.LabelMatchers {
					assert.Contains(t, []string{"__name__", "namespace", "state", "status", "result", "why"}, m.Name)
				}
			}
			return nil
		})
		assert.NotEmpty(t, r.Annotations["summary"], r.Alert)
		assert.NotEmpty(t, r.Annotations["description"], r.Alert)
	}
	assert.Equal(t, 9, alerts)

	monitor := objects[*monitoring.PodMonitor](o)["darter-images"]
	require.NotNil(t, monitor)
	selector, err := metav1.LabelSelectorAsSelector(&monitor.Spec.Selector)
	require.NoError(t, err)
	for _, w := range o.Pods {
		component := w.Template.Labels["app.kubernetes.io/component"]
		assert.Equal(t, component == "supernode" || component == "dfdaemon",
			selector.Matches(labels.Set(w.Template.Labels)), component)
	}
}

// specOf returns the spec of the only document of a file.
func specOf(t *testing.T, docs map[string][]byte, file string) (spec any) {
	for name, doc := range docs {
		if strings.HasPrefix(name, file) {
			var all map[string]any
			require.NoError(t, yaml.Unmarshal(doc, &all))
			spec = all["spec"]
		}
	}
	require.NotNil(t, spec)
	return spec
}

// Settings that the chart decides; the schema accepts all others.
var (
	ownedByAll = []string{"node.name", "node.zone", "node.dataDir", "api.listen", "health.listen", "peer.listen",
		"peer.advertise", "cluster.secret", "cluster.secretFile", "cluster.insecure", "cache.quota", "upstreams",
		"allowUnlisted", "drainTimeout"}
	ownedByDfdaemon  = []string{"mirror.listen", "supernodes"}
	ownedBySupernode = []string{"api.advertise", "admin.listen", "gossip.listen", "gossip.advertise", "gossip.join"}
)

// The schema knows each setting of the programs, and each key of an upstream.
func TestSchemaIsComplete(t *testing.T) {
	var schema struct {
		Definitions map[string]yaml.Node `yaml:"definitions"`
	}
	definition := func(name string) (p property) {
		node := schema.Definitions[name]
		require.NoError(t, node.Decode(&p))
		return p
	}
	b, err := os.ReadFile(filepath.Join(Dir, "values.schema.json"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(b, &schema))
	for _, c := range []struct {
		program, definition string
		target              any
		owned               []string
	}{
		{"dfdaemon", "dfdaemonSettings", new(config.Dfdaemon), ownedByDfdaemon},
		{"supernode", "supernodeSettings", new(config.Supernode), ownedBySupernode},
	} {
		form := config.NewForm(c.program, c.target)
		require.NoError(t, form.Load(nil))
		var text strings.Builder
		require.NoError(t, form.Print(&text))
		var all map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(text.String()), &all))
		var want []string
		for _, key := range leaves("", all) {
			if !slices.Contains(slices.Concat(ownedByAll, c.owned), key) {
				want = append(want, key)
			}
		}
		assert.ElementsMatch(t, want, definition(c.definition).leaves(""), c.program)
	}
	var keys []string
	upstream := reflect.TypeFor[config.Upstream]()
	for i := range upstream.NumField() {
		key, _, _ := strings.Cut(upstream.Field(i).Tag.Get("yaml"), ",")
		keys = append(keys, key)
	}
	assert.ElementsMatch(t, keys, definition("upstream").OneOf[1].leaves(""))
}

// property is a part of a JSON schema.
type property struct {
	Properties map[string]property `yaml:"properties"`
	OneOf      []property          `yaml:"oneOf"`
}

func (p property) leaves(prefix string) (out []string) {
	for key, sub := range p.Properties {
		if len(sub.Properties) == 0 {
			out = append(out, prefix+key)
			continue
		}
		out = append(out, sub.leaves(prefix+key+".")...)
	}
	return out
}

func leaves(prefix string, m map[string]any) (out []string) {
	for key, value := range m {
		if section, ok := value.(map[string]any); ok {
			out = append(out, leaves(prefix+key+".", section)...)
			continue
		}
		out = append(out, prefix+key)
	}
	return out
}

// Each value has a comment of its own, or stands in a section that has one.
func TestValuesHaveComments(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(Dir, "values.yaml"))
	require.NoError(t, err)
	var doc yaml.Node
	require.NoError(t, yaml.Unmarshal(b, &doc))
	var bare []string
	var walk func(prefix string, m *yaml.Node)
	walk = func(prefix string, m *yaml.Node) {
		for i := 0; i+1 < len(m.Content); i += 2 {
			key, value := m.Content[i], m.Content[i+1]
			comment, section := key.HeadComment, value.Kind == yaml.MappingNode && len(value.Content) > 0
			if i == 0 {
				comment += m.HeadComment
			}
			switch {
			case section && (comment == "" || prefix == ""): // a comment of a part of the chart is not about each value
				walk(prefix+key.Value+".", value)
			case comment == "":
				bare = append(bare, prefix+key.Value)
			}
		}
	}
	walk("", doc.Content[0])
	sort.Strings(bare)
	assert.Empty(t, bare)
}

// Every name by which an object refers to another one of the release leads somewhere.
func TestReferences(t *testing.T) {
	eachSet(t, func(t *testing.T, o Objects) {
		maps, secrets := objects[*corev1.ConfigMap](o), objects[*corev1.Secret](o)
		accounts := objects[*corev1.ServiceAccount](o)
		for _, w := range o.Pods {
			assert.Contains(t, accounts, w.Template.Spec.ServiceAccountName)
			for _, v := range w.Template.Spec.Volumes {
				switch {
				case v.ConfigMap != nil && v.Name == "config":
					assert.Contains(t, maps, v.ConfigMap.Name)
				case v.Secret != nil && v.Name == "cluster" && v.Secret.SecretName != "theirs":
					require.Contains(t, secrets, v.Secret.SecretName)
					assert.Contains(t, secrets[v.Secret.SecretName].Data, v.Secret.Items[0].Key)
				}
			}
		}
	})
}

// Twice the same values give the same objects, except for a secret that is new each time.
func TestRenderIsStable(t *testing.T) {
	for name, values := range sets {
		t.Run(name, func(t *testing.T) {
			a, b := release(t, "darter", values), release(t, "darter", values)
			for file, one := range a.All {
				if _, secret := one.(*corev1.Secret); !secret {
					assert.Equal(t, []runtime.Object{one}, []runtime.Object{b.All[file]}, file)
				}
			}
		})
	}
}
