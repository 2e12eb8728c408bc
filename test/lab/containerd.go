//go:build linux

package lab

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Containerd is a node's own containerd with its own root, so that it shares no images with others.
type Containerd struct {
	*Proc
	// Socket is the path of its API, for ctr.
	Socket string

	node        *Node
	bin         string // directory of the programs, empty for the PATH
	hosts       string // directory of hosts.toml files
	snapshotter string
}

// containerdConfig has no CRI: tests pull images with ctr and run no containers.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = %q
[debug]
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`

// Containerd starts a containerd and waits until it answers.
func (n *Node) Containerd() (*Containerd, error) { return n.containerd("") }

// containerd starts the containerd in a directory, or in the PATH.
func (n *Node) containerd(bin string) (*Containerd, error) {
	dir := filepath.Join(n.Dir, "containerd")
	c := &Containerd{bin: bin, Socket: filepath.Join(dir, "c.sock"), node: n, hosts: filepath.Join(dir, "certs.d")}
	if err := os.MkdirAll(c.hosts, 0o755); err != nil {
		return nil, fmt.Errorf("making containerd's directories on %s: %w", n.Name, err)
	}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.Socket,
		filepath.Join(dir, "opt"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("configuring containerd on %s: %w", n.Name, err)
	}
	c.snapshotter = Snapshotter()
	var err error
	if c.Proc, err = n.Start("containerd", filepath.Join(bin, "containerd"), "-c", config); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(time.Minute)
	for {
		conn, err := net.Dial("unix", c.Socket)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-c.Done():
			return nil, fmt.Errorf("containerd on %s ended at its start: %w", n.Name, c.Err())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("containerd on %s does not listen after a minute: %w", n.Name, err)
		}
	}
	if out, err := c.ctr(context.Background(), "version"); err != nil {
		return nil, fmt.Errorf("containerd on %s: %w: %s", n.Name, err, out)
	}
	return c, nil
}

// Snapshotter returns the name of the snapshotter of containerd that works in the directories of labs. The native one
// copies files: it is slower than an overlay, but works everywhere.
func Snapshotter() string {
	if overlay() {
		return "overlayfs"
	}
	return "native"
}

// Mirror configures a mirror (a URL) for a registry's images. If the mirror refuses, containerd tries server
// (host:port, plain HTTP): the registry itself, or the mirror again for no fallback.
func (c *Containerd) Mirror(registry, server, mirror string) error {
	dir := filepath.Join(c.hosts, registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = \"http://%s\"\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
		server, mirror)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644)
}

func (c *Containerd) ctr(ctx context.Context, args ...string) ([]byte, error) {
	// ctr resolves and fetches in its own process, so it must run in the node's network.
	cmd := c.node.Command(ctx, filepath.Join(c.bin, "ctr"), append([]string{"-a", c.Socket}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd.CombinedOutput()
}

// Pull pulls and unpacks an image. The error holds ctr's output.
func (c *Containerd) Pull(ctx context.Context, ref string) error { return c.pull(ctx, ref, Login{}) }

func (c *Containerd) pull(ctx context.Context, ref string, who Login) error {
	args := []string{"images", "pull", "--snapshotter", c.snapshotter, "--hosts-dir", c.hosts}
	if who.User != "" {
		args = append(args, "--user", who.User+":"+who.Password)
	}
	out, err := c.ctr(ctx, append(args, ref)...)
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
		return fmt.Errorf("ctr images pull %s on %s: %w: %s", ref, c.node.Name, err, tail(out))
	}
	return nil
}

// escapes are the control sequences of a progress display.
var escapes = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// tail returns the last lines of a progress display.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(escapes.ReplaceAllString(string(out), "")), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// File holds the properties of a file that tests compare.
type File struct {
	Type   fs.FileMode // the type bits
	Perm   fs.FileMode
	Size   int64
	Link   string // of a symbolic link
	SHA256 [sha256.Size]byte
}

// Unpacked returns the files of a pulled image as its containers would see them, by path without a leading slash.
func (c *Containerd) Unpacked(ctx context.Context, ref string) (files map[string]File, err error) {
	// Use a new directory each time: containerd 2 releases one a moment after the unmount.
	target, err := os.MkdirTemp(c.node.Dir, "rootfs-")
	if err != nil {
		return nil, err
	}
	if out, err := c.ctr(ctx, "images", "mount", "--snapshotter", c.snapshotter, ref, target); err != nil {
		return nil, fmt.Errorf("mounting %s on %s: %w: %s", ref, c.node.Name, err, tail(out))
	}
	defer func() {
		if out, e := c.ctr(context.WithoutCancel(ctx), "images", "unmount", "--snapshotter", c.snapshotter, "--rm",
			target); e != nil {
			err = errors.Join(err, fmt.Errorf("unmounting %s on %s: %w: %s", ref, c.node.Name, e, tail(out)))
		}
	}()
	return Walk(c.node.Path(target))
}

// Walk reads the files below a directory.
func Walk(root string) (map[string]File, error) {
	files := map[string]File{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := File{Type: info.Mode().Type(), Perm: info.Mode().Perm()}
		switch {
		case f.Type == fs.ModeSymlink:
			f.Perm = 0o777
			if f.Link, err = os.Readlink(p); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			r, err := os.Open(p)
			if err != nil {
				return err
			}
			defer r.Close()
			h := sha256.New()
			if f.Size, err = io.Copy(h, r); err != nil {
				return err
			}
			h.Sum(f.SHA256[:0])
		}
		rel, err := filepath.Rel(root, p)
		files[rel] = f
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the files below %s: %w", root, err)
	}
	return files, nil
}

// Tar reads the files of an archive, for example of an image's flattened file system.
func Tar(r io.Reader) (map[string]File, error) {
	files := map[string]File{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading a tar archive: %w", err)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if name == "." {
			continue
		}
		mode := h.FileInfo().Mode()
		f := File{Type: mode.Type(), Perm: mode.Perm()}
		switch h.Typeflag {
		case tar.TypeSymlink:
			f.Perm, f.Link = 0o777, h.Linkname
		case tar.TypeLink:
			f = files[path.Clean(h.Linkname)]
		case tar.TypeReg:
			sum := sha256.New()
			if f.Size, err = io.Copy(sum, tr); err != nil {
				return nil, fmt.Errorf("reading %s of a tar archive: %w", name, err)
			}
			sum.Sum(f.SHA256[:0])
		}
		files[name] = f
	}
}
