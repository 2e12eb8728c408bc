package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// crowdConfig says what crowd to build.
type crowdConfig struct {
	peers        int
	content, dir string
	pieceSize    int64 // 0: what the length makes it
	// secure gives the crowd a cluster secret, and with it TLS.
	secure bool
	// seedMultiple is the seed's uplink in uplinks of a peer; it has that many times the
	// upload slots of one. Default 4.
	seedMultiple int
	// listen and dial give host i, the seed being 0, its sockets. Default loopback.
	listen func(i int) (net.Listener, error)
	dial   func(i int) identity.DialFunc
}

// crowd is real engines with real stores in this process, and the coordinator of their
// supernode; announces are function calls.
type crowd struct {
	cfg    crowdConfig
	spec   task.Spec
	length int64
	seed   *peer.Engine
	peers  []*peer.Engine
	stores []*diskstore.Store
	cancel context.CancelFunc
	// mu is held to note how an engine or the coordinator ended.
	mu      sync.Mutex
	failed  error
	running sync.WaitGroup
}

// newCrowd starts the crowd; the seed has the content and the peers nothing.
func newCrowd(ctx context.Context, cfg crowdConfig) (_ *crowd, err error) {
	if cfg.seedMultiple == 0 {
		cfg.seedMultiple = 4
	}
	if cfg.listen == nil {
		cfg.listen = func(int) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
		cfg.dial = func(int) identity.DialFunc { return new(net.Dialer).DialContext }
	}
	origin := fileOrigin(cfg.content)
	digest, length, err := origin.digest()
	if err != nil {
		return nil, err
	}
	c := &crowd{cfg: cfg, length: length, spec: task.Spec{
		ID: task.ID(digest), Kind: task.Blob, Upstream: "registry.test", Repository: "bench", Length: length,
	}}
	ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()

	super, supernode, err := c.host(0)
	if err != nil {
		return nil, err
	}
	supernode.Seed, supernode.Origin, supernode.UploadSlots = true, origin, 4*cfg.seedMultiple
	coord := coordinator.New(coordinator.Config{Host: supernode.Host, Store: supernode.Store,
		Seed: func(s task.Spec) { c.seed.Seed(s) }})
	if supernode.Signer, err = identity.NewSigner(super); err != nil {
		return nil, err
	}
	supernode.Announcer, supernode.Observer = coord, coord
	c.seed = peer.New(supernode)
	c.run(ctx, coord.Run)
	c.run(ctx, c.seed.Run)
	if err := c.wholeAt(ctx, c.seed); err != nil {
		return nil, fmt.Errorf("bringing the content to the seed: %w", err)
	}
	for i := range cfg.peers {
		_, p, err := c.host(i + 1)
		if err != nil {
			return nil, err
		}
		o := &inProcess{coord: coord, host: p.Host}
		p.Announcer = o
		e := peer.New(p)
		c.peers = append(c.peers, e)
		c.run(ctx, e.Run)
		c.run(ctx, o.beat)
	}
	return c, nil
}

// host makes what host i is made of.
func (c *crowd) host(i int) (*identity.Identity, peer.Config, error) {
	cfg := peer.Config{Host: host.Host{ID: host.ID(fmt.Sprintf("%032x", i+1)), Name: fmt.Sprintf("host%d", i)}}
	trust := identity.Config{HostID: cfg.Host.ID, Insecure: true}
	if c.cfg.secure {
		trust.Secret = secret.String("5f0c3a1e9b7d48264ac1d3e5f7092b8d") // of this bench alone
	}
	id, err := identity.New(trust)
	if err != nil {
		return nil, cfg, err
	}
	store, err := diskstore.Open(diskstore.Config{Dir: filepath.Join(c.cfg.dir, cfg.Host.Name)})
	if err != nil {
		return nil, cfg, err
	}
	c.stores = append(c.stores, store)
	l, err := c.cfg.listen(i)
	if err != nil {
		return nil, cfg, err
	}
	cfg.Host.Addr = l.Addr().String()
	cfg.Store, cfg.Listener, cfg.Verifier = store, id.WrapListener(l), identity.NewVerifier(id)
	dial := id.WrapDialer(c.cfg.dial(i))
	cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) }
	if c.cfg.pieceSize > 0 {
		cfg.PieceSize = func(int64) int64 { return c.cfg.pieceSize }
	}
	return id, cfg, nil
}

func (c *crowd) run(ctx context.Context, f func(context.Context) error) {
	c.running.Go(func() {
		if err := f(ctx); err != nil {
			c.mu.Lock()
			c.failed = errors.Join(c.failed, err)
			c.mu.Unlock()
			c.cancel()
		}
	})
}

// pull lets every peer download everything.
func (c *crowd) pull(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, e := range c.peers {
		g.Go(func() error { return c.wholeAt(ctx, e) })
	}
	return g.Wait()
}

// wholeAt waits, piece after piece, as a client does that reads in order, until an engine
// has everything.
func (c *crowd) wholeAt(ctx context.Context, e *peer.Engine) error {
	content, err := e.Open(ctx, c.spec)
	if err != nil {
		return err
	}
	defer content.Close()
	r := content.NewReader(ctx, 0, c.length)
	defer r.Close()
	n, err := io.Copy(passBy{}, r)
	if err == nil && n != c.length {
		err = fmt.Errorf("it has %d bytes, not %d", n, c.length)
	}
	return err
}

// passBy takes bytes without moving them: what it costs to give them to a client is no part
// of the figure, and not part of the yardstick either.
type passBy struct{}

func (passBy) Write(p []byte) (int, error) { return len(p), nil }

func (passBy) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		return limited.N, nil
	}
	return io.Copy(struct{ io.Writer }{passBy{}}, r)
}

func (c *crowd) seedSent() int64 { return c.seed.Stats().Sent }

func (c *crowd) close() error {
	c.cancel()
	c.running.Wait()
	err := c.failed
	for _, s := range c.stores {
		err = errors.Join(err, s.Close())
	}
	return err
}

// inProcess is the way of one host to the coordinator.
type inProcess struct {
	coord *coordinator.Coordinator
	host  host.Host
}

func (o *inProcess) announce(ctx context.Context, entries ...api.Entry) (api.AnnounceResponse, error) {
	return o.coord.ServeAnnounce(ctx, api.AnnounceRequest{Version: api.Version, Host: o.host, Generation: 1,
		Entries: entries})
}

// Announce implements [peer.Announcer].
func (o *inProcess) Announce(ctx context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	r, err := o.announce(ctx, e)
	if err != nil {
		return api.Assignment{}, owners.Other, err
	}
	return r.Assignments[0], owners.LastResort, nil
}

// beat keeps the host alive for the owner, as the announce client does.
func (o *inProcess) beat(ctx context.Context) error {
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if _, err := o.announce(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// fileOrigin gives a file, whatever it is asked for.
type fileOrigin string

func (o fileOrigin) digest() (digest string, length int64, err error) {
	f, err := os.Open(string(o))
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if length, err = io.Copy(h, f); err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil)), length, nil
}

// Open implements [source.Origin].
func (o fileOrigin) Open(_ context.Context, _ task.Spec, offset int64) (*source.Response, error) {
	f, err := os.Open(string(o))
	if err != nil {
		return nil, err
	}
	stat, err := f.Stat()
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &source.Response{Body: f, Length: stat.Size(), MediaType: "application/octet-stream"}, nil
}
