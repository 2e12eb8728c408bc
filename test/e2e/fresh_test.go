//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
)

// hubs are names of registries that all machines resolve to one address, with TLS certificates that they trust: their
// internet.
var hubs = []string{"docker.io", "registry-1.docker.io", "quay.io", "registry.example"}

// freshly makes newly installed machines, on an internet where one registry with a token service has the names of hubs.
// Every client may pull library/* and org/*, alice everything.
func freshly(t *testing.T, nodes int) *cluster {
	t.Helper()
	lab.Need(t, lab.Network)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	require.NoError(t, programs.Build(ctx, bin, "./cmd/supernode", "./cmd/dfdaemon",
		"./test/registrytest/cmd/registry"))
	c := &cluster{Lab: lab.New(t, lab.Config{Nodes: nodes}), t: t}
	c.serve(t, "registry", ":443", "127.0.0.1:"+adminPort, hubs...)
	for _, n := range c.Nodes {
		require.NoError(t, n.Fresh())
		c.trust(t, n, "registry", hubs...)
	}
	return c
}

// serve starts a registry with TLS on the registry's machine.
func (c *cluster) serve(t *testing.T, name, port, admin string, names ...string) *lab.Proc {
	t.Helper()
	users := filepath.Join(c.Dir, "users.json")
	require.NoError(t, os.WriteFile(users, []byte(`{"": {"Pull": ["library/*", "org/*"]},
		"alice": {"Password": "wonderland", "Pull": ["*"], "Push": ["*"]}}`), 0o600))
	args := []string{
		"-listen", c.Registry.Addr + port, "-admin", admin, "-storage", c.Registry.Addr + ":0",
		"-dir", filepath.Join(c.Registry.Dir, name+"-content"), "-auth", "bearer", "-users", users,
	}
	if len(names) > 0 {
		args = append(args, "-tls", "-ca", filepath.Join(c.Dir, name+".crt"), "-names", strings.Join(names, ","))
	}
	p, err := c.Registry.Start(name, filepath.Join(bin, "registry"), args...)
	require.NoError(t, err)
	require.NoError(t, c.Registry.WaitFor(t.Context(), "http://"+admin+"/counts", time.Minute))
	return p
}

// trust makes a machine resolve a registry's names and trust its certificate.
func (c *cluster) trust(t *testing.T, n *lab.Node, name string, names ...string) {
	t.Helper()
	appendTo(t, n, "/etc/hosts", fmt.Sprintf("\n%s %s\n", c.Registry.Addr, strings.Join(names, " ")))
	pem, err := os.ReadFile(filepath.Join(c.Dir, name+".crt"))
	require.NoError(t, err)
	appendTo(t, n, "/etc/ssl/certs/ca-certificates.crt", "\n"+string(pem))
}

func appendTo(t *testing.T, n *lab.Node, file, text string) {
	t.Helper()
	f, err := os.OpenFile(n.Path(file), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func write(t *testing.T, n *lab.Node, file, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(n.Path(file)), 0o755))
	require.NoError(t, os.WriteFile(n.Path(file), []byte(text), 0o644))
}

// run runs a program on a machine and returns its output.
func run(t *testing.T, n *lab.Node, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pullLimit)
	defer cancel()
	cmd := n.Command(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s on %s: %w: %s", filepath.Base(name), strings.Join(args, " "), n.Name, err, out)
	}
	return string(out), err
}

// configuration returns every file in a machine's /etc by name: mode, text or link target.
func configuration(t *testing.T, n *lab.Node) map[string]string {
	t.Helper()
	root := n.Path("/etc")
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += " " + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " " + to
		}
		out[strings.TrimPrefix(path, root)] = what
		return nil
	}))
	return out
}

// changed returns the names that differ between two configurations.
func changed(before, after map[string]string) (names []string) {
	for name := range maps.Keys(before) {
		if after[name] != before[name] {
			names = append(names, name)
		}
	}
	for name := range maps.Keys(after) {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// machine runs a client as its distribution starts it.
type machine struct {
	*lab.Node
	client string // its name for "dfdaemon configure"
	// asked are the registries for which the client uses its mirror.
	asked []string
	// before writes the owner's configuration.
	before func(t *testing.T, n *lab.Node)
	// program is the client's daemon, or empty; answers is a command that succeeds when it is up.
	program, answers []string
	// restart is what "dfdaemon configure" asks the owner to do: "restart", "reload" or "".
	restart string
	// pulls are commands that pull the image that is appended.
	pulls [][]string

	daemon, dfdaemon *lab.Proc
	original         map[string]string // its configuration before Darter
}

func (m *machine) start(t *testing.T) {
	t.Helper()
	if len(m.program) == 0 {
		return
	}
	var err error
	m.daemon, err = m.Start(m.client, m.program[0], m.program[1:]...)
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := run(t, m.Node, m.answers[0], m.answers[1:]...)
		assert.NoError(c, err)
		assert.NoError(c, m.daemon.Err())
	}, time.Minute, 100*time.Millisecond, "%s", m.client)
}

// follow does what the output of "dfdaemon configure" asks the owner to do.
func (m *machine) follow(t *testing.T, out string) {
	t.Helper()
	switch m.restart {
	case "":
		assert.Contains(t, out, "no restart is needed")
	case "restart":
		assert.Contains(t, out, "now run: systemctl restart "+m.client)
		require.NoError(t, m.daemon.Stop(time.Minute))
		m.start(t)
	case "reload":
		assert.Contains(t, out, "now run: systemctl reload "+m.client)
		require.NoError(t, m.daemon.Signal(syscall.SIGHUP))
	}
}

// pull pulls an image with every command.
func (m *machine) pull(t *testing.T, ref string) error {
	for _, p := range m.pulls {
		if _, err := run(t, m.Node, p[0], append(slices.Clone(p[1:]), ref)...); err != nil {
			return err
		}
	}
	return nil
}

// cripull builds the command that pulls like Kubernetes.
func cripull(t *testing.T) string {
	t.Helper()
	root, err := programs.Root()
	require.NoError(t, err)
	path := filepath.Join(bin, "cripull")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-mod=mod", "-trimpath", "-o", path, "./cmd/cripull")
	cmd.Dir, cmd.Env = filepath.Join(root, "test", "clients"), append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// debianContainerd is the configuration of Debian's package of containerd 1.6.
const debianContainerd = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
`

// machines returns one machine of each kind.
func machines(t *testing.T, c *cluster) []*machine {
	containerd2, err := lab.Containerd2Dir()
	require.NoError(t, err)
	kubernetes := []string{cripull(t), "-timeout=90s"}
	// The command of the README.
	byHand := []string{"images", "pull", "--hosts-dir", "/etc/containerd/certs.d"}
	one := [][]string{kubernetes, append([]string{"ctr"}, byHand...)}
	two := [][]string{kubernetes, append([]string{filepath.Join(containerd2, "ctr")}, byHand...)}
	ready := []string{"sh", "-c",
		"test -S /run/containerd/containerd.sock && ctr version && ctr plugins ls | grep -E " +
			"'io.containerd.(grpc.v1 +cri|cri.v1 +images) .* ok'"}
	_, files, _ := strings.Cut(debianContainerd, "\n\n")
	list := []*machine{
		{client: "containerd", asked: hubs[:3], restart: "restart", program: []string{"containerd"}, answers: ready,
			pulls: one, before: func(t *testing.T, n *lab.Node) {
				write(t, n, "/etc/containerd/config.toml", debianContainerd)
				// A trap: this no longer applies to a registry with a directory of its own.
				write(t, n, "/etc/containerd/certs.d/_default/hosts.toml", "[host.\"http://127.0.0.1:9\"]\n")
			}},
		{client: "containerd", asked: hubs[:3], restart: "restart", program: []string{filepath.Join(containerd2,
			"containerd")}, answers: ready, pulls: two, before: func(t *testing.T, n *lab.Node) {
			text, err := exec.CommandContext(t.Context(), filepath.Join(containerd2, "containerd"), "config",
				"default").Output()
			require.NoError(t, err)
			write(t, n, "/etc/containerd/config.toml", string(text))
		}},
		{client: "containerd", asked: hubs[:3], restart: "restart", program: []string{filepath.Join(containerd2,
			"containerd")}, answers: ready, pulls: two, before: func(t *testing.T, n *lab.Node) {
			write(t, n, "/etc/containerd/config.toml", "# of version 1.x once\n"+"version = 2\n"+files)
		}},
		{client: "docker", asked: hubs[:2], restart: "reload", program: []string{"dockerd"}, answers: []string{"docker",
			"version"}, pulls: [][]string{{"docker", "pull", "--quiet"}}, before: func(t *testing.T, n *lab.Node) {
			write(t, n, "/etc/docker/daemon.json",
				"{\n  \"bridge\": \"none\",\n  \"iptables\": false,\n  \"ip6tables\": false\n}\n")
		}},
		{client: "podman", asked: hubs[:3], pulls: [][]string{
			{"podman", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "pull", "--quiet"},
			{"buildah", "pull", "--quiet", "--policy", "always"},
			{"sh", "-c", `rm -rf /var/lib/skopeo && skopeo copy --quiet "docker://$1" oci:/var/lib/skopeo:latest`,
				"skopeo"},
		}, before: func(*testing.T, *lab.Node) {}},
	}
	for i, m := range list {
		m.Node = c.Nodes[1+i]
	}
	return list
}

// doctor returns the output of a machine's "dfdaemon doctor".
func (c *cluster) doctor(t *testing.T, m *machine) string {
	out, err := run(t, m.Node, filepath.Join(bin, "dfdaemon"), "doctor",
		"--cluster-secret-file="+c.secret, "--supernodes="+c.Nodes[0].Addr+":65000")
	assert.NoError(t, err, "unreachable registries are no failure")
	return out
}

// clientLine matches the doctor's line about the machine's client.
func (m *machine) clientLine(level string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + level + ` +client ` + m.client + ` `)
}

// configure follows the README on one machine: doctor, configure, doctor.
func (c *cluster) configure(t *testing.T, m *machine) {
	dfdaemon := filepath.Join(bin, "dfdaemon")
	waitReady(t, m.Node, m.dfdaemon, "127.0.0.1:65003")
	before := configuration(t, m.Node)
	assert.Regexp(t, m.clientLine("WARN"), c.doctor(t, m), "not configured yet")
	diff, err := run(t, m.Node, dfdaemon, "configure", m.client, "--dry-run")
	require.NoError(t, err)
	assert.Contains(t, diff, "\n+++ b/etc/")
	assert.Empty(t, changed(before, configuration(t, m.Node)), "a dry run")

	out, err := run(t, m.Node, dfdaemon, "configure", m.client)
	require.NoError(t, err)
	t.Logf("%s on %s:\n%s", m.client, m.Name, out)
	for _, name := range changed(before, configuration(t, m.Node)) {
		if f, err := os.Stat(filepath.Join(m.Path("/etc"), name)); assert.NoError(t, err) && !f.IsDir() {
			assert.Contains(t, out, "wrote /etc"+name+"\n", "the output names every file")
		}
	}
	if _, trap := before["/containerd/certs.d/_default/hosts.toml"]; trap {
		assert.Contains(t, out,
			"_default/hosts.toml applies to registries without a directory of their own. These registries get one now")
	}
	if m.restart != "" && m.daemon != nil {
		assert.Regexp(t, m.clientLine("WARN"), c.doctor(t, m), "configured, and not restarted yet")
	}
	m.follow(t, out)
	look := ""
	require.Eventually(t, func() bool { // a reload takes a moment
		look = c.doctor(t, m)
		return m.clientLine("OK").MatchString(look)
	}, time.Minute, 100*time.Millisecond, "configured")
	t.Logf("the doctor:\n%s", look)
	again, err := run(t, m.Node, dfdaemon, "configure", m.client)
	require.NoError(t, err)
	assert.Contains(t, again, m.client+": nothing to change")
	m.original = before
}

// pullPrivate pulls a private image with right and wrong credentials, as Kubernetes does.
func (c *cluster) pullPrivate(t *testing.T, all []*machine) {
	private := c.pushSeed(50, "team/app", 2e6, 50e3)
	alice := []string{"env", "CRIPULL_PASSWORD=wonderland", filepath.Join(bin, "cripull"), "-user=alice"}
	stranger := []string{"env", "CRIPULL_PASSWORD=underland", filepath.Join(bin, "cripull"), "-user=alice"}
	kubernetes := slices.DeleteFunc(slices.Clone(all), func(m *machine) bool { return m.client != "containerd" })
	for _, m := range kubernetes {
		_, err := run(t, m.Node, stranger[0], append(stranger[1:], "quay.io/team/app:v1")...)
		require.Error(t, err, "with a wrong imagePullSecret")
		_, err = run(t, m.Node, alice[0], append(alice[1:], "quay.io/team/app:v1")...)
		require.NoError(t, err, "with the right one")
	}
	for _, o := range private.Layers() {
		assert.Equal(t, 1, c.counts().Object(o.Digest).GETs, "GETs of a layer of a private image")
	}
}

// TestREADME follows the README on machines of each kind with default settings: start, doctor, configure, doctor, pull;
// then it removes Darter again.
func TestREADME(t *testing.T) {
	race.Skip(t, raced)
	lab.Need(t, lab.Runtime, lab.Containerd2, lab.Docker, lab.Containers)
	c := freshly(t, 6)
	dfdaemon := filepath.Join(bin, "dfdaemon")
	c.secret = filepath.Join(c.Dir, "cluster-secret")
	require.NoError(t, os.WriteFile(c.secret, []byte("the secret of this test's cluster\n"), 0o600))
	supernode, err := c.Nodes[0].Start("supernode", filepath.Join(bin, "supernode"), "--cluster-secret-file="+c.secret)
	require.NoError(t, err)
	waitReady(t, c.Nodes[0], supernode, "127.0.0.1:65005")
	all := machines(t, c)
	var g errgroup.Group
	for _, m := range all {
		m.before(t, m.Node)
		m.dfdaemon, err = m.Start("dfdaemon", dfdaemon, "--cluster-secret-file="+c.secret,
			"--supernodes="+c.Nodes[0].Addr+":65000")
		require.NoError(t, err)
		g.Go(func() error { m.start(t); return nil })
	}
	require.NoError(t, g.Wait())
	for _, m := range all {
		c.configure(t, m)
	}

	pull := func(ref string, who []*machine) {
		t.Helper()
		var g errgroup.Group
		for _, m := range who {
			g.Go(func() error {
				began := time.Now()
				err := m.pull(t, ref)
				t.Logf("%s on %s: %s after %.1f s", m.client, m.Name, ref, time.Since(began).Seconds())
				return err
			})
		}
		require.NoError(t, g.Wait())
	}
	for i, hub := range []string{"docker.io", "quay.io"} {
		repository := []string{"library/app", "org/app"}[i]
		pushed := c.pushSeed(uint64(40+i), repository, 3e6, 1e6, 50e3)
		pull(hub+"/"+repository+":v1", all)
		// Docker has mirrors only for Docker Hub.
		direct := 0
		for _, m := range all {
			if !slices.Contains(m.asked, hub) {
				direct++
			}
		}
		counts := c.counts()
		for _, o := range pushed.Layers() {
			assert.Equal(t, 1+direct, counts.Object(o.Digest).GETs, "GETs of a layer of %s by %d machines",
				hub, len(all))
		}
	}
	for _, m := range all {
		s, err := c.status(&puller{Node: m.Node})
		require.NoError(t, err)
		assert.Positive(t, s.Served, "bytes that %s got from its mirror", m.client)
	}
	c.pullPrivate(t, all)

	// Without its dfdaemon each client uses the registry itself.
	for _, m := range all {
		require.NoError(t, m.dfdaemon.Stop(time.Minute))
	}
	for i, hub := range []string{"docker.io", "quay.io"} {
		repository := []string{"library/app", "org/app"}[i]
		c.pushSeed(uint64(60+i), repository, 1e6, 50e3)
		pull(hub+"/"+repository+":v1", all)
	}

	for _, m := range all {
		out, err := run(t, m.Node, dfdaemon, "configure", m.client, "--remove")
		require.NoError(t, err)
		assert.Empty(t, changed(m.original, configuration(t, m.Node)),
			"the configuration is restored, with %s", m.client)
		m.follow(t, out)
	}
	c.pushSeed(70, "org/app", 1e6, 50e3)
	pull("quay.io/org/app:v1", all)
}
