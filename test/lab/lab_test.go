//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// orphanEnv makes this test binary build a lab and wait for a signal.
const orphanEnv = "DARTER_LAB_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) == "" {
		os.Exit(m.Run())
	}
	l, err := Build(Config{Nodes: 1})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	p, err := l.Nodes[0].Start("sleep", "sleep", "1000")
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("built", l.Dir, l.Nodes[0].holder.Pid(), p.Pid())
	select {}
}

func gone(pid int) func() bool {
	return func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || bytes.Contains(b, []byte(") Z "))
	}
}

// Nodes reach each other and no other machine.
func TestNetwork(t *testing.T) {
	l := New(t, Config{Nodes: 2})
	listener, err := l.Nodes[0].Listen("0.0.0.0:80")
	require.NoError(t, err)
	defer listener.Close()
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a node hears "+r.RemoteAddr)
	}))

	resp, err := l.Nodes[1].Client().Get("http://" + l.Nodes[0].Addr + "/")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	require.NoError(t, err)
	assert.Contains(t, string(body), "a node hears "+l.Nodes[1].Addr+":")

	// Another host may answer at that address in the machine's own network.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Nodes[0].Addr+"/", nil)
	require.NoError(t, err)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		assert.NotContains(t, string(body), "a node hears", "the machine itself must not reach a node")
	}

	out, err := l.Nodes[1].Command(t.Context(), "ip", "route").CombinedOutput()
	require.NoError(t, err)
	assert.NotContains(t, string(out), "default")
}

func TestTraffic(t *testing.T) {
	const size, rate = 2 << 20, 32_000_000
	l := New(t, Config{Nodes: 1, NodeRate: rate})
	listener, err := l.Registry.Listen("0.0.0.0:80")
	require.NoError(t, err)
	defer listener.Close()
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, size))
	}))

	before, err := l.Registry.Traffic()
	require.NoError(t, err)
	start := time.Now()
	resp, err := l.Nodes[0].Client().Get("http://" + l.Registry.Addr + "/")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	require.NoError(t, err)
	took := time.Since(start)
	after, err := l.Registry.Traffic()
	require.NoError(t, err)

	sent := after.Sent - before.Sent
	assert.GreaterOrEqual(t, sent, int64(size))
	assert.Less(t, sent, int64(size)*11/10, "frames cost less than a tenth")
	// Two bursts pass at once, the rest at the rate.
	assert.Greater(t, took, 350*time.Millisecond, "2 MiB at 32 Mbit/s need half a second")
}

func TestKill(t *testing.T) {
	l := New(t, Config{Nodes: 1})
	p, err := l.Nodes[0].Start("shell", "sh", "-c", "echo to the log; exec sleep 1000")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return p.Log() == "to the log" }, time.Minute, time.Millisecond)
	require.NoError(t, p.Kill())
	assert.ErrorContains(t, p.Err(), "killed")
	assert.True(t, gone(p.Pid())())
	require.NoError(t, p.Kill(), "killing twice is no error")

	again, err := l.Nodes[0].Start("shell", "sleep", "1000")
	require.NoError(t, err)
	require.NoError(t, again.Stop(time.Minute))
}

// Close ends all processes and removes all files of a lab.
func TestClose(t *testing.T) {
	Need(t, Network)
	l, err := Build(Config{Nodes: 1})
	require.NoError(t, err)
	p, err := l.Nodes[0].Start("stubborn", "sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done")
	require.NoError(t, err)
	holder := l.Nodes[0].holder.Pid()
	require.NoError(t, l.Close())
	assert.True(t, gone(p.Pid())())
	assert.True(t, gone(holder)())
	assert.NoDirExists(t, l.Dir)
	require.NoError(t, l.Close(), "closing twice is no error")
}

// A lab ends with the process that built it.
func TestBuilderEnds(t *testing.T) {
	Need(t, Network)
	for _, row := range []struct {
		signal syscall.Signal
		swept  bool // the builder removed its directory
	}{{syscall.SIGKILL, false}, {syscall.SIGINT, true}, {syscall.SIGTERM, true}} {
		t.Run(row.signal.String(), func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), orphanEnv+"=1")
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			f := strings.Fields(line)
			require.True(t, err == nil && len(f) == 4 && f[0] == "built", "the builder says %q, %v", line, err)
			require.DirExists(t, f[1])

			require.NoError(t, cmd.Process.Signal(row.signal))
			var exit *exec.ExitError
			require.ErrorAs(t, cmd.Wait(), &exit)
			assert.Equal(t, row.signal, exit.Sys().(syscall.WaitStatus).Signal())
			for _, text := range f[2:] {
				pid, err := strconv.Atoi(text)
				require.NoError(t, err)
				assert.Eventually(t, gone(pid), time.Minute, time.Millisecond, "process %d lives on", pid)
			}
			if row.swept {
				assert.NoDirExists(t, f[1])
			}
			require.NoError(t, Sweep())
			assert.NoDirExists(t, f[1])
		})
	}
}

func TestSweepKeepsRunningLabs(t *testing.T) {
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, Sweep())
	assert.DirExists(t, dir)
}

// layer makes a layer of files: pairs of a path and its text. "-> x" makes a symbolic link to x.
func layer(t *testing.T, files ...string) v1.Layer {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		p := filepath.Join(dir, files[i])
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		if target, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			require.NoError(t, os.Symlink(target, p))
			continue
		}
		require.NoError(t, os.WriteFile(p, []byte(files[i+1]), 0o640))
	}
	archive := filepath.Join(t.TempDir(), "layer.tar")
	out, err := exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "-cf", archive, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := tarball.LayerFromFile(archive)
	require.NoError(t, err)
	return l
}

// containerd pulls through its mirror and unpacks the pushed files.
func TestContainerd(t *testing.T) {
	Need(t, Runtime)
	l := New(t, Config{Nodes: 1})
	listener, err := l.Registry.Listen(l.Registry.Addr + ":5000")
	require.NoError(t, err)
	defer listener.Close()
	asked := make(chan string, 100)
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Method + " " + r.URL.Path + " " + r.URL.Query().Get("ns"):
		default:
		}
		reg.ServeHTTP(w, r)
	}))
	img, err := mutate.AppendLayers(empty.Image,
		layer(t, "etc/motd", "first", "etc/old", "gone soon", "bin/link", "-> ../etc/motd"),
		layer(t, "etc/motd", "second", "etc/.wh.old", "x"))
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	ref, err := name.ParseReference(l.Registry.Addr + ":5000/lib/small:v1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img, remote.WithTransport(l.Registry.Client().Transport)))
	for len(asked) > 0 {
		<-asked
	}

	c, err := l.Nodes[0].Containerd()
	require.NoError(t, err)
	// No machine has the registry's own address, so only the mirror can answer.
	require.NoError(t, c.Mirror("registry.invalid:5000", "registry.invalid:5000", "http://"+l.Registry.Addr+":5000"))
	pulled := "registry.invalid:5000/lib/small:v1"
	require.NoError(t, c.Pull(t.Context(), pulled))
	assert.Equal(t, "HEAD /v2/lib/small/manifests/v1 registry.invalid:5000", <-asked)

	files, err := c.Unpacked(t.Context(), pulled)
	require.NoError(t, err)
	flat := mutate.Extract(img)
	defer flat.Close()
	want, err := Tar(flat)
	require.NoError(t, err)
	assert.Equal(t, want, files)
	assert.Len(t, files, 4, "etc, etc/motd, bin, bin/link: %v", files)

	err = c.Pull(t.Context(), "registry.invalid:5000/lib/unknown:v1")
	assert.ErrorContains(t, err, "lib/unknown:v1")
}
