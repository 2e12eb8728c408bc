//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
)

// imagePrefix and imageVersion make the names of the images under test.
const (
	imagePrefix  = "registry.test/darter"
	imageVersion = "v0.0.0"
)

// buildImages builds the container images for this machine as make images does, and returns their tar files by program.
func buildImages(t *testing.T) map[string]string {
	t.Helper()
	arch := "linux_" + runtime.GOARCH
	from := filepath.Join(bin, "for-images")
	require.NoError(t, programs.Build(t.Context(), filepath.Join(from, arch), "./cmd/..."))
	require.NoError(t, programs.Build(t.Context(), bin, "./test/images"))
	out := filepath.Join(t.TempDir(), "oci")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "images"),
		"-bin", from, "-out", out, "-arch", runtime.GOARCH, "-version", imageVersion,
		"-prefix", imagePrefix)
	cmd.Env = append(cmd.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
	files := map[string]string{}
	for _, p := range []string{"supernode", "dfdaemon"} {
		files[p] = filepath.Join(out, fmt.Sprintf("%s_%s_%s.tar", p, imageVersion, arch))
	}
	return files
}

// ownContainerd starts a containerd in a process namespace of its own, so that its containers end with the lab.
func ownContainerd(t *testing.T, n *lab.Node) *lab.Proc {
	t.Helper()
	write(t, n, "/etc/containerd/config.toml", "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+
		"[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"/var/lib/containerd/opt\"\n")
	p, err := n.Start("containerd", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "containerd",
		"--config", "/etc/containerd/config.toml")
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := run(t, n, "ctr", "version")
		assert.NoError(c, err)
		assert.NoError(c, p.Err())
	}, time.Minute, 50*time.Millisecond)
	return p
}

// container returns the arguments of ctr for a container as narrow as in the Helm chart: on the network of the node,
// with a read-only root, the default seccomp profile and no capability.
func container(program, id string, mounts []string, args ...string) []string {
	all := []string{"run", "--rm", "--net-host", "--read-only", "--seccomp", "--snapshotter", lab.Snapshotter()}
	for _, c := range strings.Fields("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP " +
		"NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE") {
		all = append(all, "--cap-drop", "CAP_"+c)
	}
	for _, m := range mounts {
		all = append(all, "--mount", m)
	}
	return append(append(all, imagePrefix+"/"+program+":"+imageVersion, id), args...)
}

// processStatus returns the status of the process of a container, as the kernel sees it.
func processStatus(t *testing.T, n *lab.Node, containerd *lab.Proc, id string) string {
	t.Helper()
	out, err := run(t, n, "ctr", "tasks", "ls")
	require.NoError(t, err)
	m := regexp.MustCompile(`(?m)^` + id + ` +(\d+) +RUNNING`).FindStringSubmatch(out)
	require.NotNil(t, m, "%s", out)
	// ctr names the process as containerd's namespace does, whose /proc its first process has as its root.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", containerd.Pid()))
	require.NoError(t, err)
	first := strings.Fields(string(children))
	require.Len(t, first, 1)
	b, err := os.ReadFile("/proc/" + first[0] + "/root/proc/" + m[1] + "/status")
	require.NoError(t, err)
	return string(b)
}

// The images run in containerd as the Helm chart runs them, and an init container writes and restores the node's files.
func TestImagesRun(t *testing.T) {
	race.Skip(t, raced)
	lab.Need(t, lab.Network, lab.Runtime)
	files := buildImages(t)
	n := lab.New(t, lab.Config{Nodes: 1}).Nodes[0]
	require.NoError(t, n.Fresh())
	containerd := ownContainerd(t, n)
	for _, file := range files {
		_, err := run(t, n, "ctr", "images", "import", "--snapshotter", lab.Snapshotter(), file)
		require.NoError(t, err)
	}

	write(t, n, "/etc/containerd/certs.d/quay.io/hosts.toml", "server = \"https://quay.io\"\n"+
		"[host.\"https://site.example\"]\ncapabilities = [\"pull\"]\n")
	before := configuration(t, n)
	configure := func(id string, more ...string) {
		t.Helper()
		args := append([]string{"/usr/bin/dfdaemon", "configure", "containerd", "--upstreams=quay.io",
			"--upstreams=docker.io", "--root=/host", "--hosts-only"}, more...)
		out, err := run(t, n, "ctr", container("dfdaemon", id,
			[]string{"type=bind,src=/etc/containerd,dst=/host/etc/containerd,options=rbind:rw"}, args...)...)
		require.NoError(t, err)
		t.Log(out)
	}
	configure("configure")
	after := configuration(t, n)
	assert.Contains(t, changed(before, after), "/containerd/certs.d/docker.io/hosts.toml")
	ours := strings.Index(after["/containerd/certs.d/quay.io/hosts.toml"], "http://127.0.0.1:65001")
	theirs := strings.Index(after["/containerd/certs.d/quay.io/hosts.toml"], "https://site.example")
	assert.Positive(t, ours)
	assert.Greater(t, theirs, ours, "the hosts of the site stay, behind the mirror")

	const mib = 1 << 20
	require.NoError(t, os.MkdirAll(n.Path("/var/lib/darter"), 0o700))
	start := func(program string, uid int, mount string, args ...string) *lab.Proc {
		t.Helper()
		limited := append([]string{"run", "--memory-limit", fmt.Sprint(500 * mib), "--env",
			"DARTER_HEALTH_LISTEN=" + n.Addr + ":65010"}, container(program, program, []string{mount,
			"type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev"}, args...)[1:]...)
		p, err := n.Start(program, "ctr", limited...)
		require.NoError(t, err)
		require.NoError(t, n.WaitFor(t.Context(), "http://"+n.Addr+":65010/readyz", time.Minute), "%s", p.Log())
		status := processStatus(t, n, containerd, program)
		for _, line := range []string{fmt.Sprintf("Uid:\t%d\t%[1]d", uid), "CapEff:\t0000000000000000", "NoNewPrivs:\t1",
			"Seccomp:\t2"} {
			assert.Contains(t, status, line, program)
		}
		assert.Contains(t, p.Log(), fmt.Sprintf("\"memory is limited\" bytes=%d", 450*mib), program)
		return p
	}
	stop := func(p *lab.Proc) {
		t.Helper()
		_, err := run(t, n, "ctr", "tasks", "kill", "--signal", "SIGTERM", p.Name)
		require.NoError(t, err)
		select {
		case <-p.Done():
			assert.NoError(t, p.Err(), "%s", p.Log())
		case <-time.After(time.Minute):
			require.FailNow(t, "it does not end", "%s", p.Log())
		}
	}
	dfdaemon := start("dfdaemon", 0, "type=bind,src=/var/lib/darter,dst=/var/lib/darter,options=rbind:rw",
		"/usr/bin/dfdaemon", "--peer-listen=127.0.0.1:65002")
	out, err := run(t, n, "ctr", "tasks", "exec", "--exec-id", "status", "dfdaemon", "/usr/bin/dfdaemon", "status")
	require.NoError(t, err, "the command of the notes of the chart")
	assert.Contains(t, out, "ready")
	require.NoError(t, n.WaitFor(t.Context(), "http://127.0.0.1:65001/v2/", time.Minute))
	stop(dfdaemon)
	// The entrypoint of the image is the program.
	stop(start("supernode", 65532, "type=tmpfs,src=tmpfs,dst=/var/lib/darter,options=uid=65532:mode=0700"))

	configure("remove", "--remove")
	assert.Empty(t, changed(before, configuration(t, n)))
}
