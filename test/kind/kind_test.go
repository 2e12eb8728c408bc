package kind

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/registrytest"
)

var (
	outFile  = flag.String("out", "", "output file for the report (JSON)")
	logsDir  = flag.String("logs", "", "directory for the logs of a failed test")
	stay     = flag.Bool("stay", false, "wait for the end of standard input before the cluster is removed")
	workersN = flag.Int("workers", 4, "number of workers")
)

// things is what TestMain prepared.
var things struct {
	built
	dir string
	err error // why the test cannot run
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(prepare(m))
}

// prepare builds everything, and on a machine without a Docker daemon runs the tests in namespaces of their own.
func prepare(m *testing.M) int {
	ctx := context.Background()
	if dir := os.Getenv(insideEnv); dir != "" {
		b, err := os.ReadFile(filepath.Join(dir, "built.json"))
		if err == nil {
			err = json.Unmarshal(b, &things.built)
		}
		things.dir, things.err = dir, err
		return m.Run()
	}
	if things.err = missing(ctx); things.err != nil {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "darter-kind-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	own := !stock(ctx)
	fmt.Println("building programs and images; the first time takes some 20 minutes of CPU time without Docker")
	if things.built, err = build(ctx, dir, own); err != nil {
		fmt.Fprintln(os.Stderr, "building what the test needs:", err)
		return 1
	}
	fmt.Printf("built in %.0f s\n", time.Since(began).Seconds())
	things.dir = dir
	if !own {
		return m.Run()
	}
	b, err := json.Marshal(things.built)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "built.json"), b, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return inside(ctx, dir)
}

// lab is a cluster with its registry.
type lab struct {
	*cluster
	t        *testing.T
	registry *registry
	workload workload
	report   report
	// seen are the digests of what nodes have.
	seen map[string]bool
}

// fresh returns the bytes of an image that no node has yet, and takes them as pulled.
func (l *lab) fresh(image registrytest.Pushed) (n int64) {
	for _, o := range image.Objects {
		if !l.seen[o.Digest] {
			n += o.Size
		}
		l.seen[o.Digest] = true
	}
	return n
}

// kube runs kubectl, which must not fail.
func (l *lab) kube(args ...string) string {
	l.t.Helper()
	out, err := l.kubectl(l.t.Context(), args...)
	require.NoError(l.t, err)
	return out
}

// push pushes an image of some layers and returns its name and its size.
func (l *lab) push(repository, tag string, parts ...part) (ref string, pushed registrytest.Pushed, img v1.Image) {
	l.t.Helper()
	img, err := l.workload.image(parts...)
	require.NoError(l.t, err)
	pushed, err = l.registry.push(l.t.Context(), repository, tag, img)
	require.NoError(l.t, err)
	return l.registryHost() + "/" + repository + ":" + tag, pushed, img
}

// daemonSet is a workload on all workers that have a label.
func daemonSet(name, image string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 100%%}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: {darter.test/workload: "yes"}
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: "%[2]s", imagePullPolicy: IfNotPresent}]
`, name, image)
}

// rollout starts a DaemonSet and waits until all its pods run. Meanwhile it calls during, if that is not nil, once
// the registry has sent a quarter of the new bytes.
func (l *lab) rollout(name, ds, image string, fresh int64, limit float64, during func()) row {
	t := l.t
	t.Helper()
	ctx := t.Context()
	require.NoError(t, l.registry.reset(ctx))
	began := time.Now()
	require.NoError(t, l.apply(ctx, daemonSet(ds, image)))
	if during != nil {
		require.NoError(t, l.sends(fresh/4))
		during()
	}
	l.kube("rollout", "status", "daemonset/"+ds, "--timeout=300s")
	r := row{Name: name, Nodes: l.ready(ds), New: fresh, Limit: limit, Seconds: time.Since(began).Seconds()}
	l.measure(&r)
	return r
}

// sends waits until the registry has sent some bytes since the last reset.
func (l *lab) sends(bytes int64) error {
	return poll(l.t.Context(), time.Minute, func() error {
		if n := l.registry.Counts().Egress; n < bytes {
			return fmt.Errorf("the registry has sent %d bytes, less than %d", n, bytes)
		}
		return nil
	})
}

// ready returns how many pods of a DaemonSet are ready.
func (l *lab) ready(ds string) (n int) {
	l.t.Helper()
	_, err := fmt.Sscan(l.kube("get", "daemonset", ds, "-o", "jsonpath={.status.numberReady}"), &n)
	require.NoError(l.t, err)
	return n
}

// measure adds what the registry has sent to a row, and the row to the report.
func (l *lab) measure(r *row) {
	t := l.t
	t.Helper()
	var err error
	r.Front, r.Kernel, err = l.registry.sent(t.Context())
	require.NoError(t, err)
	if r.New > 0 {
		r.Ratio = float64(r.Front) / float64(r.New)
	}
	l.report.Rows = append(l.report.Rows, *r)
	t.Logf("%+v", *r)
	if r.Limit > 0 {
		assert.LessOrEqual(t, r.Ratio, r.Limit, "%s: copies that the registry sent", r.Name)
	}
}

// scenario runs a part of the test. Later parts go on if one fails.
func (l *lab) scenario(name string, f func(t *testing.T)) bool {
	outer := l.t
	return outer.Run(name, func(t *testing.T) {
		l.t = t
		defer func() { l.t = outer }()
		f(t)
	})
}

// nodeConfiguration returns the files of the container runtime on a node, with their modes, owners and hashes.
func (l *lab) nodeConfiguration(node string) string {
	l.t.Helper()
	out, err := l.exec(l.t.Context(), node, "", "sh", "-ec", `cd /etc/containerd
find . -printf '%p %y %m %U %G %l\n' | sort
find . -type f -exec sha256sum {} + | sort -k 2`)
	require.NoError(l.t, err)
	return out
}

// namespace is that of Darter.
const namespace = "darter"

// values are the values of the chart.
func (l *lab) values() string {
	return fmt.Sprintf(`image: {registry: darter.test, tag: %s}
upstreams: [{host: "%s", plainHTTP: true}]
supernode: {cache: {sizeGiB: 2}, settings: {log: {format: json}}}
dfdaemon: {cache: {sizeGiB: 2}, settings: {log: {format: json}}}
`, imageVersion, l.registryHost())
}

// newLab makes the registry and the cluster, which end with the test.
func newLab(t *testing.T) *lab {
	t.Helper()
	if err := things.err; err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI=true forbids skipping: %v", err)
		}
		t.Skipf("%v; see docs/install.md", err)
	}
	ctx := t.Context()
	e, err := startEngine(ctx, things.dir, things.built)
	require.NoError(t, err)
	t.Cleanup(e.stop)
	l := &lab{t: t, seen: map[string]bool{}}
	l.registry, err = startRegistry(context.WithoutCancel(ctx), things.dir, e)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.registry.stop()) })
	l.workload, err = newWorkload("app", things.Pause)
	require.NoError(t, err)
	l.cluster, err = createCluster(ctx, things.dir, e, things.built, *workersN)
	if l.cluster != nil {
		t.Cleanup(func() {
			ctx := context.WithoutCancel(ctx)
			if t.Failed() && *logsDir != "" {
				t.Logf("the logs are in %s (%v)", *logsDir, l.saveLogs(ctx, *logsDir))
			}
			if *stay {
				t.Logf("the cluster stays until standard input ends: export DOCKER_HOST=%s KUBECONFIG=%s",
					os.Getenv("DOCKER_HOST"), l.kubeconfig)
				_, _ = os.Stdin.Read(make([]byte, 1))
			}
			assert.NoError(t, l.delete())
		})
	}
	require.NoError(t, err)
	return l
}

// The chart in a cluster of several nodes: what the registry sends, what happens when parts fail, and what stays.
func TestKind(t *testing.T) {
	began := time.Now()
	l := newLab(t)
	t.Logf("the cluster is ready after %.0f s", time.Since(began).Seconds())
	l.describe()
	defer func() {
		t.Log("\n" + l.report.table())
		if *outFile != "" {
			assert.NoError(t, l.report.write(*outFile))
		}
	}()
	for _, w := range l.workers {
		l.kube("label", "node", w, "darter.test/workload=yes")
	}
	before := map[string]string{}
	for _, n := range l.nodes() {
		before[n] = l.nodeConfiguration(n)
	}
	const mb = 1_000_000
	base := part{1, []int64{30 * mb, 20 * mb, 8 * mb, 1 * mb}}

	l.scenario("without Darter", func(t *testing.T) {
		// What nodes have without Darter, no other node gets through Darter.
		with := l.workload
		defer func() { l.workload = with }()
		var err error
		l.workload, err = newWorkload("without", things.Pause)
		require.NoError(t, err)
		ref, pushed, _ := l.push("lib/without", "v1", part{9, []int64{8 * mb, 1 * mb}})
		r := l.rollout("without Darter", "without", ref, l.fresh(pushed), 0, nil)
		assert.GreaterOrEqual(t, r.Ratio, float64(len(l.workers))-0.1)
		l.kube("delete", "daemonset", "without")
	})
	if !l.scenario("install", func(*testing.T) { l.install() }) {
		return
	}
	l.scenario("cold rollout", func(t *testing.T) {
		ref, pushed, _ := l.push("lib/app", "v1", base)
		l.rollout("cold rollout", "app", ref, l.fresh(pushed), 1.02, nil)
		l.requireFromDarter()
	})
	l.scenario("second image with shared layers", func(t *testing.T) {
		ref, pushed, _ := l.push("lib/other", "v1", base, part{2, []int64{6 * mb, 1 * mb}})
		l.rollout("second image with shared layers", "other", ref, l.fresh(pushed), 1.02, nil)
		l.kube("delete", "daemonset", "other")
	})
	l.scenario("rolling update of one layer", func(t *testing.T) {
		ref, pushed, _ := l.push("lib/app", "v2", base, part{3, []int64{5 * mb}})
		l.rollout("rolling update of one layer", "app", ref, l.fresh(pushed), 1.02, nil)
	})
	l.scenario("node added later", func(t *testing.T) {
		node, err := l.addWorker(t.Context())
		require.NoError(t, err)
		before[node] = strings.ReplaceAll(before[l.workers[0]], l.workers[0], node)
		l.rolledOut()
		require.NoError(t, l.registry.reset(t.Context()))
		since := time.Now()
		l.kube("label", "node", node, "darter.test/workload=yes")
		require.NoError(t, poll(t.Context(), time.Minute, func() error {
			if n := l.ready("app"); n < len(l.workers) {
				return fmt.Errorf("%d pods run", n)
			}
			return nil
		}))
		r := row{Name: "node added later", Nodes: 1, Seconds: time.Since(since).Seconds()}
		l.measure(&r)
		counts := l.registry.Counts()
		for name, tally := range counts.Objects {
			assert.NotContains(t, name, "/blobs/", "%+v", tally)
		}
		l.kube("delete", "daemonset", "app")
	})
	faults := []struct {
		name   string
		limit  float64
		during func()
	}{
		{"supernode killed", 1.10, func() { l.killSupernode() }},
		{"dfdaemon pod deleted", 1.25, func() { l.deleteDfdaemon() }},
	}
	for i, f := range faults {
		l.scenario(f.name, func(t *testing.T) {
			l.registry.Shape(20*mb, 0)
			defer l.registry.Shape(0, 0)
			ref, pushed, _ := l.push("lib/fault", fmt.Sprint("v", i), part{uint64(20 + i), []int64{40 * mb, 30 * mb, 10 * mb}})
			l.rollout(f.name+" in mid-rollout", "fault", ref, l.fresh(pushed), f.limit, f.during)
			l.kube("delete", "daemonset", "fault")
			l.rolledOut()
		})
	}
	l.scenario("private image", func(t *testing.T) { l.private() })
	l.scenario("worker killed", func(t *testing.T) { delete(before, l.killOneWorker()) })
	l.scenario("uninstall", func(t *testing.T) {
		ref, pushed, _ := l.push("lib/after", "v1", part{30, []int64{3 * mb}})
		out, err := l.helmRun(t.Context(), "uninstall", "darter", "--namespace", namespace, "--timeout", "5m")
		require.NoError(t, err)
		t.Log(out)
		for _, n := range l.nodes() {
			assert.Equal(t, before[n], l.nodeConfiguration(n), "the files of %s", n)
		}
		left := l.kube("get", "all,configmaps,secrets,serviceaccounts,roles,rolebindings,pvc", "--namespace", namespace,
			"-o", "name")
		for _, name := range strings.Fields(left) {
			assert.Contains(t, []string{"configmap/kube-root-ca.crt", "serviceaccount/default"}, name, "a leftover")
		}
		r := l.rollout("after uninstall", "after", ref, l.fresh(pushed), 0, nil)
		assert.GreaterOrEqual(t, r.Ratio, float64(len(l.workers))-0.1)
	})
}

// describe adds the versions to the report.
func (l *lab) describe() {
	l.t.Helper()
	l.report.Kubernetes = "Kubernetes " + l.kube("get", "node", controlPlane, "-o",
		"jsonpath={.status.nodeInfo.kubeletVersion}")
	l.report.Containerd = l.kube("get", "node", controlPlane, "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
	l.report.Nodes = len(l.nodes())
	l.t.Logf("\n%s", l.kube("get", "nodes", "-o", "wide"))
}

// install installs the chart with the commands of docs/install.md.
func (l *lab) install() {
	t := l.t
	t.Helper()
	file := filepath.Join(things.dir, "values.yaml")
	require.NoError(t, os.WriteFile(file, []byte(l.values()), 0o600))
	l.kube("create", "namespace", namespace)
	l.kube("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=privileged")
	since := time.Now()
	out, err := l.helmRun(t.Context(), "install", "darter", "deploy/helm/darter", "--namespace", namespace,
		"--values", file)
	require.NoError(t, err)
	t.Log(out)
	l.rolledOut()
	t.Logf("installed in %.1f s", time.Since(since).Seconds())
	t.Log(l.kube("--namespace", namespace, "exec", "daemonset/darter-dfdaemon", "--container", "dfdaemon", "--",
		"dfdaemon", "status"))
	t.Log(l.kube("--namespace", namespace, "get", "pods", "-o", "wide"))
	for _, n := range l.nodes() {
		assert.Contains(t, l.nodeConfiguration(n), "hosts.toml")
	}
}

// rolledOut waits until all pods of Darter are ready.
func (l *lab) rolledOut() {
	l.t.Helper()
	for _, w := range []string{"statefulset/darter-supernode", "daemonset/darter-dfdaemon"} {
		l.kube("--namespace", namespace, "rollout", "status", w, "--timeout=180s")
	}
}

// requireFromDarter requires that every worker's dfdaemon has delivered bytes.
func (l *lab) requireFromDarter() {
	l.t.Helper()
	for _, node := range l.workers {
		out := l.kube("--namespace", namespace, "exec", l.podOn("dfdaemon", node), "--", "dfdaemon", "status")
		l.t.Logf("%s\n%s", node, out)
	}
}

// podOn returns the pod of a component on a node.
func (l *lab) podOn(component, node string) string {
	l.t.Helper()
	out := strings.Fields(l.kube("--namespace", namespace, "get", "pods", "-l", "app.kubernetes.io/component="+component,
		"--field-selector", "spec.nodeName="+node, "-o", "name"))
	require.NotEmpty(l.t, out, "%s has no %s", node, component)
	return out[0]
}

// killSupernode kills the process of a supernode, which its kubelet starts again.
func (l *lab) killSupernode() {
	l.t.Helper()
	node := l.kube("--namespace", namespace, "get", "pod", "darter-supernode-0", "-o", "jsonpath={.spec.nodeName}")
	_, err := l.exec(l.t.Context(), node, "", "sh", "-ec", "kill -KILL $(pgrep -x supernode)")
	require.NoError(l.t, err)
}

// deleteDfdaemon deletes the dfdaemon pod of a worker that runs no supernode.
func (l *lab) deleteDfdaemon() {
	l.t.Helper()
	l.kube("--namespace", namespace, "delete", "--wait=false", l.podOn("dfdaemon", l.withoutSupernode()))
}

// withoutSupernode returns a worker that runs no supernode.
func (l *lab) withoutSupernode() string {
	l.t.Helper()
	supernodes := strings.Fields(l.kube("--namespace", namespace, "get", "pods", "-l",
		"app.kubernetes.io/component=supernode", "-o", "jsonpath={.items[*].spec.nodeName}"))
	for _, w := range slices.Backward(l.workers) {
		if !slices.Contains(supernodes, w) {
			return w
		}
	}
	require.Fail(l.t, "every worker runs a supernode")
	return ""
}

// killOneWorker kills a worker in the middle of a rollout, and returns its name once all others run the image.
func (l *lab) killOneWorker() string {
	t := l.t
	t.Helper()
	ctx := t.Context()
	victim := l.withoutSupernode()
	l.registry.Shape(20_000_000, 0)
	defer l.registry.Shape(0, 0)
	ref, pushed, _ := l.push("lib/killed", "v1", part{60, []int64{40_000_000, 30_000_000, 10_000_000}})
	fresh := l.fresh(pushed)
	require.NoError(t, l.registry.reset(ctx))
	began := time.Now()
	require.NoError(t, l.apply(ctx, daemonSet("killed", ref)))
	require.NoError(t, l.sends(fresh/4))
	require.NoError(t, l.killWorker(ctx, victim, func() {
		require.NoError(t, poll(ctx, 3*time.Minute, func() error {
			if n := l.ready("killed"); n < len(l.workers)-1 {
				return fmt.Errorf("%d pods run", n)
			}
			return nil
		}))
	}))
	r := row{Name: "worker killed in mid-rollout", Nodes: len(l.workers), New: fresh, Limit: 1.10,
		Seconds: time.Since(began).Seconds()}
	l.measure(&r)
	l.kube("delete", "daemonset", "killed")
	l.rolledOut()
	return victim
}

// pod is a pod on one node.
func pod(name, node, image, secret string) string {
	s := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: single}}\nspec:\n  nodeName: %s\n"+
		"  terminationGracePeriodSeconds: 0\n  containers: [{name: app, image: %q}]\n", name, node, image)
	if secret != "" {
		s += "  imagePullSecrets: [{name: " + secret + "}]\n"
	}
	return s
}

// private pulls a private image with the secret of a pod; pods without it, and with a wrong one, get nothing, although
// their node's neighbours have the image.
func (l *lab) private() {
	t := l.t
	t.Helper()
	require.GreaterOrEqual(t, len(l.workers), 4)
	ref, pushed, _ := l.push("team/app", "v1", part{40, []int64{9_000_000, 1_000_000}})
	for name, password := range map[string]string{"right": alicePassword, "wrong": "underland"} {
		l.kube("create", "secret", "docker-registry", name, "--docker-server="+l.registryHost(),
			"--docker-username="+alice, "--docker-password="+password)
	}
	require.NoError(t, l.registry.reset(t.Context()))
	began := time.Now()
	for i, w := range l.workers[:2] {
		require.NoError(t, l.apply(t.Context(), pod(fmt.Sprint("private-", i), w, ref, "right")))
	}
	l.kube("wait", "--for=condition=Ready", "pod", "-l", "app=single", "--timeout=120s")
	r := row{Name: "private image", Nodes: 2, New: l.fresh(pushed), Limit: 1.02, Seconds: time.Since(began).Seconds()}
	l.measure(&r)
	for i, secret := range []string{"", "wrong"} {
		name := fmt.Sprint("refused-", i)
		require.NoError(t, l.apply(t.Context(), pod(name, l.workers[2+i], ref, secret)))
		var why string
		require.NoError(t, poll(t.Context(), time.Minute, func() error {
			why = l.kube("get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].state}")
			if !strings.Contains(why, "ErrImagePull") && !strings.Contains(why, "ImagePullBackOff") {
				return fmt.Errorf("pod %s is in state %s", name, why)
			}
			return nil
		}))
		t.Logf("with secret %q: %s", secret, why)
		l.kube("delete", "pod", name)
	}
	for _, o := range pushed.Layers() {
		// The layer with the program came with an earlier image.
		assert.LessOrEqual(t, l.registry.Counts().Object(o.Digest).GETs, 1, "GETs of %s", o.Digest)
	}
	l.kube("delete", "pod", "-l", "app=single")
	l.kube("delete", "secret", "right", "wrong")
}
