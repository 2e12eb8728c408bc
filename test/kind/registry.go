package kind

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/darter-io/darter/test/registrytest"
)

// Ports of the registry, and of the host to which it can redirect.
const (
	registryPort = "5000"
	storagePort  = "5001"
)

// alice may pull private images. Everyone may pull lib/…
const (
	alice         = "alice"
	alicePassword = "wonderland"
)

// registry is the registry outside of the cluster. It counts the bytes that it sends, and so does the kernel.
type registry struct {
	*registrytest.Registry
	kernel bool
	cancel context.CancelFunc
	done   chan error
}

// startRegistry starts the registry with its blobs in dir.
func startRegistry(ctx context.Context, dir string, e *engine) (*registry, error) {
	r, err := registrytest.Listen(registrytest.Config{
		Addr: e.registry + ":" + registryPort, StorageAddr: e.registry + ":" + storagePort,
		Dir: filepath.Join(dir, "registry"), Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{
			"": {Pull: []string{"lib/*"}}, alice: {Password: alicePassword, Pull: []string{"*"}},
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	out := &registry{Registry: r, kernel: e.own, cancel: cancel, done: make(chan error, 1)}
	go func() { out.done <- r.Run(ctx) }()
	if !out.kernel {
		return out, nil
	}
	rules := fmt.Sprintf("table ip egress {\n counter sent {}\n chain out { type filter hook output priority 0;\n"+
		" ip saddr %s ip daddr != %[1]s counter name sent\n }\n}\n", e.registry)
	file := filepath.Join(dir, "egress.nft")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		return out, err
	}
	_, err = command(ctx, "", "nft", "-f", file)
	return out, err
}

func (r *registry) stop() error {
	r.cancel()
	return <-r.done
}

// push pushes an image and returns the bytes that the registry sends if it sends every object once.
func (r *registry) push(ctx context.Context, repository, tag string, img v1.Image) (registrytest.Pushed, error) {
	return r.Push(ctx, repository, tag, img)
}

// reset sets all counts to zero.
func (r *registry) reset(ctx context.Context) error {
	r.Reset()
	if !r.kernel {
		return nil
	}
	_, err := command(ctx, "", "nft", "reset", "counters")
	return err
}

// sent returns the bytes since the last reset: as the front of the registry counts bodies, and as the kernel counts
// packets with their headers. The latter is -1 if only the owner of the machine could count it.
func (r *registry) sent(ctx context.Context) (front, kernel int64, err error) {
	front = r.Counts().Egress
	if !r.kernel {
		return front, -1, nil
	}
	out, err := exec.CommandContext(ctx, "nft", "--json", "list", "counters").Output()
	if err != nil {
		return front, -1, fmt.Errorf("reading the counter of the kernel: %w", err)
	}
	var answer struct {
		Nftables []struct {
			Counter *struct{ Bytes int64 }
		}
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return front, -1, err
	}
	for _, o := range answer.Nftables {
		if o.Counter != nil {
			kernel += o.Counter.Bytes
		}
	}
	return front, kernel, nil
}
