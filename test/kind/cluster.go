package kind

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	kindcluster "sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"
)

// clusterName is the name of the cluster, with which the names of all its containers begin.
const clusterName = "darter-test"

// controlPlane is the container of the control plane.
const controlPlane = clusterName + "-control-plane"

// cluster is a kind cluster.
type cluster struct {
	*engine
	built
	provider   *kindcluster.Provider
	kubeconfig string
	image      string // of its nodes
	workers    []string
}

// createCluster creates a control plane and some workers.
func createCluster(ctx context.Context, dir string, e *engine, b built, workers int) (*cluster, error) {
	c := &cluster{engine: e, built: b, kubeconfig: filepath.Join(dir, "kubeconfig"),
		provider: kindcluster.NewProvider(kindcluster.ProviderWithDocker())}
	config := "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking: {ipFamily: ipv4"
	options := []kindcluster.CreateOption{kindcluster.CreateWithKubeconfigPath(c.kubeconfig),
		kindcluster.CreateWithRetain(true)}
	if e.own {
		var err error
		if c.image, err = e.nodeImage(ctx, b); err != nil {
			return nil, err
		}
		config += ", disableDefaultCNI: true, kubeProxyMode: nftables"
		options = append(options, kindcluster.CreateWithNodeImage(c.image))
	}
	config += "}\nnodes:\n- role: control-plane\n" + strings.Repeat("- role: worker\n", workers)
	if e.own {
		config += "kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  failCgroupV1: false\n  oomScoreAdj: 0\n"
	}
	options = append(options, kindcluster.CreateWithRawConfig([]byte(config)))
	if err := c.provider.Create(clusterName, options...); err != nil {
		return c, fmt.Errorf("creating the cluster: %w", err)
	}
	nodes, err := c.provider.ListInternalNodes(clusterName)
	if err != nil {
		return c, err
	}
	for _, n := range nodes {
		if n.String() != controlPlane {
			c.workers = append(c.workers, n.String())
		}
	}
	slices.Sort(c.workers)
	if c.image == "" {
		out, err := command(ctx, "", "docker", "inspect", "--format", "{{.Config.Image}}", controlPlane)
		if err != nil {
			return c, err
		}
		c.image = strings.TrimSpace(out)
	}
	if err := errors.Join(c.weigh(), c.routePods(ctx)); err != nil {
		return c, err
	}
	for _, n := range c.nodes() {
		if err := c.prepareNode(ctx, n); err != nil {
			return c, err
		}
	}
	_, err = c.kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=180s")
	return c, err
}

// nodes are all containers of the cluster.
func (c *cluster) nodes() []string { return append([]string{controlPlane}, c.workers...) }

// exec runs a command in the container of a node, with some input.
func (c *cluster) exec(ctx context.Context, node, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", "-i", node}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s on %s: %w\n%s%s", strings.Join(args, " "), node, err, tail(string(out)),
			tail(errs.String()))
	}
	return string(out), nil
}

// kubectl runs kubectl on the control plane.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	all := append([]string{"kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"}, args...)
	return c.exec(ctx, controlPlane, "", all...)
}

// apply applies a manifest.
func (c *cluster) apply(ctx context.Context, manifest string) error {
	_, err := c.exec(ctx, controlPlane, manifest, "kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "apply", "-f", "-")
	return err
}

// helmRun runs helm on this machine.
func (c *cluster) helmRun(ctx context.Context, args ...string) (string, error) {
	return command(ctx, filepath.Join("..", ".."), c.Helm, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
}

// podNetwork is what kind's own network does on its node image: a bridge per node, and routes between nodes. Traffic
// that leaves the cluster has the address of the node.
const podNetwork = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// masquerade gives traffic of pods to other networks the address of their node. Arguments: nodes and pods.
const masquerade = `table ip pods {
 chain post { type nat hook postrouting priority srcnat; ip saddr %[2]s ip daddr != { %[1]s, %[2]s } masquerade; }
}
`

// podSubnet is kind's default.
const podSubnet = "10.244.0.0/16"

// routePods connects the pods of all nodes, where the node image brings no network.
func (c *cluster) routePods(ctx context.Context) error {
	if !c.own {
		return nil
	}
	out, err := c.kubectl(ctx, "get", "nodes", "-o", "json")
	if err != nil {
		return err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ PodCIDR string }
			Status   struct {
				Addresses []struct{ Type, Address string }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return err
	}
	for _, n := range list.Items {
		if n.Spec.PodCIDR == "" {
			return fmt.Errorf("node %s has no range of addresses for pods yet", n.Metadata.Name)
		}
		script := "cat > /etc/cni/net.d/10-pods.conflist; sysctl -qw net.ipv4.ip_forward=1\n"
		for _, other := range list.Items {
			for _, a := range other.Status.Addresses {
				if a.Type == "InternalIP" && other.Metadata.Name != n.Metadata.Name {
					script += fmt.Sprintf("ip route replace %s via %s\n", other.Spec.PodCIDR, a.Address)
				}
			}
		}
		name := n.Metadata.Name
		if _, err := c.exec(ctx, name, fmt.Sprintf(podNetwork, n.Spec.PodCIDR), "sh", "-ec", script); err != nil {
			return err
		}
		rules := "add table ip pods\ndelete table ip pods\n" + fmt.Sprintf(masquerade, "172.26.0.0/16", podSubnet)
		if _, err := c.exec(ctx, name, rules, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return nil
}

// siteHosts is the file of the site for the registry, which has no TLS here.
func (c *cluster) siteHosts() string {
	return fmt.Sprintf("# A file of the site.\nserver = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n"+
		"  capabilities = [\"pull\", \"resolve\"]\n", c.registryHost())
}

// registryHost is the registry's name in the names of images.
func (c *cluster) registryHost() string { return c.registry + ":" + registryPort }

// weigh gives the nodes, which share one cgroup, the weight of as many processes against the rest of this machine.
func (c *cluster) weigh() error {
	const file = "/sys/fs/cgroup/cpu/docker/cpu.shares"
	if _, err := os.Stat(file); !c.own || err != nil {
		return nil
	}
	return os.WriteFile(file, fmt.Append(nil, 1024*len(c.nodes())), 0o644)
}

// prepareNode gives a node the configuration of its site and Darter's own images.
func (c *cluster) prepareNode(ctx context.Context, node string) error {
	if _, err := c.exec(ctx, node, c.siteHosts(), "sh", "-ec", `
dir=/etc/containerd/certs.d/`+c.registryHost()+`
mkdir -p "$dir"
cat > "$dir/hosts.toml"`); err != nil {
		return err
	}
	all, err := c.provider.ListInternalNodes(clusterName)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n.String() != node {
			continue
		}
		for _, file := range c.Images {
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			err = nodeutils.LoadImageArchive(n, f)
			f.Close()
			if err != nil {
				return fmt.Errorf("loading %s into %s: %w", file, node, err)
			}
		}
		return nil
	}
	return fmt.Errorf("no node %s", node)
}

// addWorker adds one more worker, as kind makes them.
func (c *cluster) addWorker(ctx context.Context) (string, error) {
	name := fmt.Sprintf("%s-worker%d", clusterName, len(c.workers)+1)
	if _, err := command(ctx, "", "docker", "run", "--name", name, "--hostname", name, "--label",
		"io.x-k8s.kind.cluster="+clusterName, "--label", "io.x-k8s.kind.role=worker", "--privileged", "--security-opt",
		"seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--tmpfs", "/tmp", "--tmpfs", "/run", "--volume",
		"/var", "--volume", "/lib/modules:/lib/modules:ro", "--detach", "--tty", "--net", network, "--init=false",
		"--cgroupns=private", c.image); err != nil {
		return name, err
	}
	if err := poll(ctx, 2*time.Minute, func() error {
		_, err := c.exec(ctx, name, "", "systemctl", "is-active", "multi-user.target")
		return err
	}); err != nil {
		return name, err
	}
	// Pods come as soon as the node has joined.
	if err := c.prepareNode(ctx, name); err != nil {
		return name, err
	}
	// kind left the file with which it made the first worker join.
	first := c.workers[0]
	conf, err := c.exec(ctx, first, "", "cat", "/kind/kubeadm.conf")
	if err != nil {
		return name, err
	}
	addresses := map[string]string{}
	for _, n := range []string{first, name} {
		out, err := command(ctx, "", "docker", "inspect", "--format",
			"{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", n)
		if err != nil {
			return name, err
		}
		addresses[n] = strings.TrimSpace(out)
	}
	conf = strings.NewReplacer(addresses[first], addresses[name], first, name).Replace(conf)
	if _, err := c.exec(ctx, name, conf, "sh", "-ec", "cat > /kind/kubeadm.conf; "+
		"kubeadm join --config /kind/kubeadm.conf --skip-phases=preflight"); err != nil {
		return name, err
	}
	c.workers = append(c.workers, name)
	if err := poll(ctx, time.Minute, func() error { return c.routePods(ctx) }); err != nil {
		return name, err
	}
	_, err = c.kubectl(ctx, "wait", "--for=condition=Ready", "node/"+name, "--timeout=120s")
	return name, err
}

// killWorker ends a worker at once, as a machine that breaks, and then removes its node. pods is called in between.
func (c *cluster) killWorker(ctx context.Context, name string, pods func()) error {
	if _, err := command(ctx, "", "docker", "kill", name); err != nil {
		return err
	}
	pods()
	c.workers = slices.DeleteFunc(c.workers, func(w string) bool { return w == name })
	_, err := c.kubectl(ctx, "delete", "node", name)
	_, removed := command(ctx, "", "docker", "rm", "--force", "--volumes", name)
	return errors.Join(err, removed)
}

// saveLogs writes what explains a failure to dir: the logs of pods, nodes and the Docker daemon.
func (c *cluster) saveLogs(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// It also wants programs that a node of our own lacks, and reports each.
	errs := []error{c.provider.CollectLogs(clusterName, dir)}
	if c.own {
		errs = nil
	}
	for name, args := range map[string][]string{
		"objects.yaml": {"get", "pods,daemonsets,statefulsets,jobs,configmaps,nodes", "--all-namespaces", "-o", "yaml"},
		"pods.txt":     {"get", "pods", "--all-namespaces", "-o", "wide"},
		"describe.txt": {"describe", "pods", "--all-namespaces"},
		"events.txt":   {"get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"},
	} {
		out, err := c.kubectl(ctx, args...)
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644))
	}
	if c.log != "" {
		b, err := os.ReadFile(c.log)
		errs = append(errs, err, os.WriteFile(filepath.Join(dir, "dockerd.log"), b, 0o644))
	}
	return errors.Join(errs...)
}

// delete removes the cluster with all its containers and volumes.
func (c *cluster) delete() error { return c.provider.Delete(clusterName, c.kubeconfig) }
