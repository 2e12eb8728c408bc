//go:build linux

package lab

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Login holds the credentials of a pull; the zero value means none.
type Login struct{ User, Password string }

// Tool is a container tool on a node, with its own storage and a mirror for docker.io. Image names begin with
// docker.io.
type Tool interface {
	// Version returns the tool's version.
	Version(context.Context) (string, error)
	// Pull pulls an image. The error holds the tool's output.
	Pull(ctx context.Context, ref string, who Login) error
	// Files returns the files of a pulled image as its containers would see them, by path without a leading slash.
	Files(ctx context.Context, ref string) (map[string]File, error)
}

// Kind is a container tool.
type Kind string

// The kinds. Each needs the feature of the same name.
const (
	KindContainerd1 Kind = "containerd-1"
	KindContainerd2 Kind = "containerd-2"
	KindDocker      Kind = "dockerd"
	KindPodman      Kind = "podman"
	KindBuildah     Kind = "buildah"
	KindSkopeo      Kind = "skopeo"
)

// Kinds returns all kinds.
func Kinds() []Kind {
	return []Kind{KindContainerd1, KindContainerd2, KindDocker, KindPodman, KindBuildah, KindSkopeo}
}

// Tool starts a tool on the node, with a mirror of docker.io at host:port. If the mirror refuses, the tool tries server
// (host:port, plain HTTP) instead of the registry; empty means no fallback. dockerd always tries docker.io itself,
// which no lab reaches.
func (n *Node) Tool(kind Kind, mirror, server string) (Tool, error) {
	dir := filepath.Join(n.Dir, string(kind))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a directory for %s: %w", kind, err)
	}
	switch kind {
	case KindContainerd1, KindContainerd2:
		bin := ""
		if kind == KindContainerd2 {
			var err error
			if bin, err = containerd2(); err != nil {
				return nil, err
			}
		}
		c, err := n.containerd(bin)
		if err != nil {
			return nil, err
		}
		if server == "" {
			server = mirror
		}
		return &ctr{c}, c.Mirror("docker.io", server, "http://"+mirror)
	case KindDocker:
		return n.dockerd(dir, mirror)
	case KindPodman, KindBuildah, KindSkopeo:
		return n.containersTool(kind, dir, mirror, server)
	}
	return nil, fmt.Errorf("unknown tool %q", kind)
}

// ctr is a containerd as a Tool.
type ctr struct{ *Containerd }

func (c *ctr) Version(ctx context.Context) (string, error) {
	out, err := c.node.Command(ctx, filepath.Join(c.bin, "containerd"), "--version").Output()
	f := strings.Fields(string(out))
	if err != nil || len(f) < 3 {
		return "", fmt.Errorf("asking containerd for its version: %w: %s", err, out)
	}
	return f[2], nil
}

func (c *ctr) Pull(ctx context.Context, ref string, who Login) error { return c.pull(ctx, ref, who) }

func (c *ctr) Files(ctx context.Context, ref string) (map[string]File, error) {
	return c.Unpacked(ctx, ref)
}

// cli is the common part of the tools with a command line.
type cli struct {
	node    *Node
	program string
	dir     string
	mirror  string
	server  string
	env     []string
	global  []string // arguments in front of every command
}

// run runs the tool. The end of ctx kills it and its children.
func (t *cli) run(ctx context.Context, args ...string) ([]byte, error) {
	args = append(append([]string{}, t.global...), args...)
	cmd := t.node.Command(ctx, "env", append(append([]string{}, append(t.env, t.program)...), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
		err = fmt.Errorf("%s %s on %s: %w: %s",
			t.program, strings.Join(args, " "), t.node.Name, err, tail([]byte(errs.String()+string(out))))
	}
	return out, err
}

func (t *cli) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, t.program, "--version").Output()
	if err != nil {
		return "", err
	}
	for _, f := range strings.Fields(string(out)) {
		if f[0] >= '0' && f[0] <= '9' {
			return strings.TrimSuffix(f, ","), nil
		}
	}
	return "", fmt.Errorf("%s --version prints no version: %s", t.program, out)
}

// authFile writes credentials for hosts in the format of docker login.
func (t *cli) authFile(name string, who Login, hosts ...string) (string, error) {
	var auths []string
	for _, h := range hosts {
		if who.User != "" && h != "" {
			encoded := base64.StdEncoding.EncodeToString([]byte(who.User + ":" + who.Password))
			auths = append(auths, fmt.Sprintf("%q: {\"auth\": %q}", h, encoded))
		}
	}
	file := filepath.Join(t.dir, name)
	return file, os.WriteFile(file, []byte(`{"auths": {`+strings.Join(auths, ", ")+`}}`), 0o600)
}

// dockerd is a Docker daemon with its own image store.
type dockerd struct {
	cli
	*Proc
}

// dockerHub is the name under which docker login stores the credentials of docker.io.
const dockerHub = "https://index.docker.io/v1/"

func (n *Node) dockerd(dir, mirror string) (Tool, error) {
	sock := "unix://" + filepath.Join(dir, "d.sock")
	d := &dockerd{cli: cli{node: n, program: "docker", dir: dir, mirror: mirror}}
	d.global = []string{"--host", sock, "--config", dir}
	driver := "vfs"
	if overlay() {
		driver = "overlay2"
	}
	// An empty file, so that dockerd does not read the machine's configuration.
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		return nil, err
	}
	var err error
	d.Proc, err = n.Start("dockerd", "dockerd", "--host", sock, "--data-root", filepath.Join(dir, "data"),
		"--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--storage-driver", driver, "--registry-mirror", "http://"+mirror,
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--config-file", config)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		if _, err = d.run(context.Background(), "version"); err == nil {
			return d, nil
		}
		select {
		case <-d.Done():
			return nil, fmt.Errorf("dockerd on %s ended at its start: %w", n.Name, d.Err())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("dockerd on %s does not answer after two minutes: %w", n.Name, err)
		}
	}
}

func (d *dockerd) Version(ctx context.Context) (string, error) {
	out, err := d.run(ctx, "version", "--format", "{{.Server.Version}}")
	return strings.TrimSpace(string(out)), err
}

func (d *dockerd) Pull(ctx context.Context, ref string, who Login) error {
	if _, err := d.authFile("config.json", who, dockerHub); err != nil {
		return err
	}
	_, err := d.run(ctx, "pull", "--quiet", ref)
	return err
}

func (d *dockerd) Files(ctx context.Context, ref string) (map[string]File, error) {
	id, err := d.run(ctx, "create", "--network", "none", ref, "nothing")
	if err != nil {
		return nil, err
	}
	args := append(append([]string{}, d.global...), "export", strings.TrimSpace(string(id)))
	cmd := d.node.Command(ctx, d.program, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	files, err := Tar(out)
	err = errors.Join(err, cmd.Wait())
	// dockerd adds these to every container.
	for _, own := range []string{
		".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/mtab",
		"etc/resolv.conf", "proc", "sys",
	} {
		delete(files, own)
	}
	return files, err
}

// containersTool is Podman, Buildah or skopeo.
type containersTool struct {
	cli
	kind Kind
}

func (n *Node) containersTool(kind Kind, dir, mirror, server string) (Tool, error) {
	conf := filepath.Join(dir, "registries.conf")
	text := "[[registry]]\nprefix = \"docker.io\"\ninsecure = true\n"
	if server == "" {
		text += fmt.Sprintf("location = \"%s/docker.io\"\n", mirror)
	} else {
		text += fmt.Sprintf("location = %q\n[[registry.mirror]]\nlocation = \"%s/docker.io\"\ninsecure = true\n",
			server, mirror)
	}
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(policy, []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644); err != nil {
		return nil, err
	}
	c := &containersTool{cli: cli{node: n, program: string(kind), dir: dir, mirror: mirror, server: server}, kind: kind}
	c.env = []string{
		"CONTAINERS_REGISTRIES_CONF=" + conf, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + dir,
		"REGISTRY_AUTH_FILE=" + filepath.Join(dir, "auth.json"),
	}
	driver := "vfs"
	if overlay() {
		driver = "overlay"
	}
	storage := []string{
		"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", driver,
	}
	switch kind {
	case KindPodman:
		c.global = append(storage, "--tmpdir", filepath.Join(dir, "tmp"), "--cgroup-manager", "cgroupfs",
			"--events-backend", "none")
	case KindBuildah:
		c.global = append(storage, "--registries-conf", conf)
	case KindSkopeo:
		c.global = []string{"--registries-conf", conf, "--policy", policy, "--tmpdir", dir}
	}
	return c, nil
}

func (c *containersTool) Pull(ctx context.Context, ref string, who Login) error {
	auth, err := c.authFile("auth.json", who, c.mirror, c.server)
	if err != nil {
		return err
	}
	policy := filepath.Join(c.dir, "policy.json")
	switch c.kind {
	case KindSkopeo:
		_, err = c.run(ctx, "copy", "--quiet", "--authfile", auth, "docker://"+ref, "oci:"+c.layout(ref)+":pulled")
	case KindBuildah:
		_, err = c.run(ctx, "pull", "--quiet", "--policy", "always", "--signature-policy", policy,
			"--authfile", auth, ref)
	default:
		_, err = c.run(ctx, "pull", "--quiet", "--signature-policy", policy, "--authfile", auth, ref)
	}
	return err
}

// layout returns the directory to which skopeo copies an image.
func (c *containersTool) layout(ref string) string {
	return filepath.Join(c.dir, strings.NewReplacer("/", "_", ":", "_").Replace(ref))
}

func (c *containersTool) Files(ctx context.Context, ref string) (_ map[string]File, err error) {
	switch c.kind {
	case KindSkopeo:
		index, err := layout.ImageIndexFromPath(c.layout(ref))
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil || len(manifest.Manifests) != 1 {
			return nil, fmt.Errorf("skopeo's layout holds no single image: %v, %w", manifest, err)
		}
		img, err := index.Image(manifest.Manifests[0].Digest)
		if err != nil {
			return nil, err
		}
		flat := mutate.Extract(img)
		defer flat.Close()
		return Tar(flat)
	case KindBuildah:
		id, err := c.run(ctx, "from", "--pull-never", ref)
		if err != nil {
			return nil, err
		}
		container := strings.TrimSpace(string(id))
		defer func() {
			_, e := c.run(context.WithoutCancel(ctx), "rm", container)
			err = errors.Join(err, e)
		}()
		at, err := c.run(ctx, "mount", container)
		if err != nil {
			return nil, err
		}
		return Walk(c.node.Path(strings.TrimSpace(string(at))))
	}
	at, err := c.run(ctx, "image", "mount", ref)
	if err != nil {
		return nil, err
	}
	defer func() {
		_, e := c.run(context.WithoutCancel(ctx), "image", "unmount", ref)
		err = errors.Join(err, e)
	}()
	return Walk(c.node.Path(strings.TrimSpace(string(at))))
}
