package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// insideEnv is set in the process that runs in a network of its own.
const insideEnv = "DARTER_KIND_INSIDE"

// registryAddr is the address of the registry in that network: none of the cluster.
const registryAddr = "192.0.2.1"

// stock reports whether a Docker daemon of the machine answers. The cluster then runs in it, on kind's own node image.
func stock(ctx context.Context) bool {
	return os.Getenv(insideEnv) == "" && exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").
		Run() == nil
}

// missing returns why this machine cannot run the test, and nil if it can.
func missing(ctx context.Context) error {
	need := []string{"go", "docker"}
	if !stock(ctx) {
		if os.Geteuid() != 0 {
			return errors.New("no Docker daemon answers, and only root can start one in a network of its own")
		}
		need = append(need, "dockerd", "runc", "unshare", "ip", "nft", "apt-get", "debootstrap", "chroot", "tar")
	}
	for _, program := range need {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("it needs %s, which is not in PATH", program)
		}
	}
	return nil
}

// inside runs this process once more in network, mount and process namespaces of its own. They end with it, and so does
// every daemon, container and mount in them. It returns the exit code.
func inside(ctx context.Context, dir string) int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The shell takes the end of processes that lost their parent.
	args := append([]string{"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
		`"$0" "$@"; exit $?`, self}, os.Args[1:]...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The signal of the death of the parent is that of its thread.
	runtime.LockOSThread()
	err = cmd.Run()
	removeCgroups()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// removeCgroups removes the empty cgroups that a killed dockerd left.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/docker", "/sys/fs/cgroup/*/docker"} {
		tops, _ := filepath.Glob(pattern)
		for _, top := range tops {
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				_ = os.Remove(dirs[i])
			}
		}
	}
}

// engine is the Docker daemon in which the cluster runs.
type engine struct {
	// own is set for a daemon that the test started.
	own bool
	// registry is the address at which nodes reach the registry.
	registry string
	// log is the file of the daemon's log, if it is our own.
	log string
	cmd *exec.Cmd
}

// network is the name of the Docker network that kind uses.
const network = "kind"

// startEngine starts a daemon of our own in dir, or takes that of the machine.
func startEngine(ctx context.Context, dir string, b built) (*engine, error) {
	if os.Getenv(insideEnv) == "" {
		return stockEngine(ctx)
	}
	e := &engine{own: true, registry: registryAddr, log: filepath.Join(dir, "dockerd.log")}
	for _, args := range [][]string{
		{"mount", "-t", "tmpfs", "tmpfs", "/run"},
		{"ip", "link", "set", "lo", "up"},
		{"ip", "link", "add", "registry0", "type", "bridge"},
		{"ip", "addr", "add", registryAddr + "/32", "dev", "registry0"},
		{"ip", "link", "set", "registry0", "up"},
	} {
		if _, err := command(ctx, "", args[0], args[1:]...); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(e.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	args := []string{"--data-root", filepath.Join(dir, "docker"), "--exec-root", "/run/docker", "--pidfile",
		"/run/docker.pid", "--host", socket, "--storage-driver", "overlay2"}
	if lacksResource() {
		args = append(args, "--add-runtime", "weak="+b.Runc, "--default-runtime", "weak")
	}
	e.cmd = exec.Command("dockerd", args...)
	// The programs of Debian's package go before others of the same name.
	e.cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	if err := os.Setenv("DOCKER_HOST", socket); err != nil {
		return nil, err
	}
	if err := poll(ctx, time.Minute, func() error {
		_, err := command(ctx, "", "docker", "version")
		return err
	}); err != nil {
		return nil, fmt.Errorf("dockerd does not answer: %w", err)
	}
	_, err = command(ctx, "", "docker", "network", "create", "--driver", "bridge", "--subnet", "172.26.0.0/16", network)
	return e, err
}

// stop ends a daemon of our own.
func (e *engine) stop() {
	if e.cmd != nil {
		_ = e.cmd.Process.Signal(os.Interrupt)
		_ = e.cmd.Wait()
	}
}

// stockEngine takes the daemon of the machine. The registry listens at the address of the bridge.
func stockEngine(ctx context.Context) (*engine, error) {
	if _, err := command(ctx, "", "docker", "network", "inspect", network); err != nil {
		if _, err := command(ctx, "", "docker", "network", "create", network); err != nil {
			return nil, err
		}
	}
	out, err := command(ctx, "", "docker", "network", "inspect", network, "--format", "{{json .IPAM.Config}}")
	if err != nil {
		return nil, err
	}
	var nets []struct{ Gateway string }
	if err := json.Unmarshal([]byte(out), &nets); err != nil {
		return nil, fmt.Errorf("reading the network of kind: %w", err)
	}
	for _, n := range nets {
		if a, err := netip.ParseAddr(n.Gateway); err == nil && a.Is4() {
			return &engine{registry: a.String()}, nil
		}
	}
	return nil, fmt.Errorf("the network of kind has no IPv4 gateway: %s", out)
}

// lacksResource reports whether root lacks CAP_SYS_RESOURCE here, so that no container can have it.
func lacksResource() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &caps); err == nil {
				return caps&(1<<24) == 0
			}
		}
	}
	return false
}

// nodeImage makes the image of the nodes in a daemon of our own and returns its name.
func (e *engine) nodeImage(ctx context.Context, b built) (string, error) {
	const name = "darter-kind-node:" + kubernetesVersion
	script := `cp -a "$0" "$3"
cp -a --remove-destination -T "$1" "$3"
tar -C "$3" -c . | docker import --change 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]' \
	--change 'ENV container=docker' - "$2"
rm -r "$3"`
	_, err := command(ctx, "", "sh", "-ec", script, b.NodeRoot, b.NodeFiles, name, b.NodeFiles+"-root")
	return name, err
}

// poll calls f until it returns no error, for a limited time.
func poll(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
