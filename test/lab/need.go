//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Feature is a requirement that not every machine meets.
type Feature string

// The features.
const (
	Network Feature = "network namespaces" // root, unshare, nsenter, ip and tc
	Runtime Feature = "containerd"         // containerd and ctr

	// Tools of [Kind]; Containerd2 is built from its module, by Go.
	Containerd2 Feature = "containerd 2"
	Docker      Feature = "dockerd and docker"
	Containers  Feature = "podman, buildah and skopeo"
)

// Need skips the test if the machine lacks a feature. If CI=true it fails the test instead.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	for _, f := range features {
		err := probe(f)
		switch {
		case err == nil:
		case os.Getenv("CI") == "true":
			t.Fatalf("needs %s, and CI=true forbids skipping: %v", f, err)
		default:
			t.Skipf("needs %s: %v; make e2e runs this as root on a machine that has them", f, err)
		}
	}
}

func probe(f Feature) error {
	switch f {
	case Network:
		return namespaces()
	case Runtime:
		return containerds()
	case Containerd2:
		_, err := containerd2()
		return errors.Join(containerds(), err)
	case Docker:
		return errors.Join(containerds(), programs("dockerd", "docker", "runc"))
	case Containers:
		return errors.Join(containerds(), programs("podman", "buildah", "skopeo", "crun", "conmon"))
	}
	return fmt.Errorf("unknown feature %q", f)
}

// programs returns an error unless all programs are in the PATH.
func programs(names ...string) error {
	var missing []string
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not in PATH: %s", strings.Join(missing, ", "))
	}
	return nil
}

var namespaces = sync.OnceValue(func() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can create them")
	}
	if err := programs("unshare", "nsenter", "ip", "tc", "sh"); err != nil {
		return err
	}
	out, err := exec.Command("unshare", "--net", "--mount", "--uts", "sh", "-c",
		"ip link add br0 type bridge && ip link add v0 type veth peer name v1 &&"+
			" tc qdisc add dev v0 root tbf rate 1mbit burst 64kb latency 100ms").CombinedOutput()
	if err != nil {
		return fmt.Errorf("creating one with a bridge, a veth pair and a shaped link: %w: %s", err, out)
	}
	return nil
})

var containerds = sync.OnceValue(func() error {
	if err := namespaces(); err != nil {
		return err
	}
	return programs("containerd", "ctr", "mount")
})

// containerd2 returns the directory of containerd 2 and its ctr. It builds them, in the version of test/clients, if
// they are not built yet.
var containerd2 = sync.OnceValues(func() (string, error) {
	const module = "github.com/containerd/containerd/v2"
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("looking for this module's directory: %w", err)
	}
	clients := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "test", "clients")
	list := exec.Command("go", "list", "-mod=mod", "-m", "-f", "{{.Version}}", module)
	list.Dir = clients
	version, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("looking for the version of containerd 2: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, "darter-lab", "containerd-"+strings.TrimSpace(string(version)))
	if programs(filepath.Join(bin, "containerd"), filepath.Join(bin, "ctr")) == nil {
		return bin, nil
	}
	part := bin + ".part" + strconv.Itoa(os.Getpid())
	defer os.RemoveAll(part)
	ldflags := "-s -w -X " + module + "/version.Version=" + strings.TrimSpace(string(version))
	build := exec.Command("go", "build", "-mod=mod", "-trimpath", "-ldflags", ldflags,
		"-o", part+string(filepath.Separator), module+"/cmd/containerd", module+"/cmd/ctr")
	build.Dir, build.Env = clients, append(os.Environ(), "CGO_ENABLED=0")
	if err := os.MkdirAll(part, 0o755); err != nil {
		return "", err
	}
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building containerd 2: %w: %s", err, tail(out))
	}
	if err := os.Rename(part, bin); err != nil && programs(filepath.Join(bin, "ctr")) != nil {
		return "", err
	}
	return bin, nil
})

// overlay reports whether labs can mount an overlay in their directory. That fails on top of another overlay, for
// example in a container.
var overlay = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-overlay-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return false
		}
	}
	// The mount namespace ends with the command, and so does the mount.
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	return exec.Command("unshare", "--mount", "--propagation", "private", "mount", "-t", "overlay", "overlay",
		"-o", options, filepath.Join(dir, "merged")).Run() == nil
})

// Containerd2Dir returns the directory of containerd 2 and its ctr; see [Containerd2].
func Containerd2Dir() (string, error) { return containerd2() }
