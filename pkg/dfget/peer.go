package dfget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
)

// knock bounds how long it takes to find out that no dfdaemon answers on this machine.
const knock = time.Second

// answers reports whether anything listens where the daemon should.
func answers(ctx context.Context, at config.Address) bool {
	d := net.Dialer{Timeout: knock}
	c, err := d.DialContext(ctx, "tcp", string(at))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// ownDaemon is a dfdaemon inside this process, for as long as the downloads take: the same
// code, on free ports, with a cache that is deleted at the end.
type ownDaemon struct {
	*daemon.Daemon
	dir   string
	stop  context.CancelFunc
	ended chan error
}

// newOwnDaemon starts it; beside is where there will be room for the content, too.
func newOwnDaemon(cfg Config, beside string) (*ownDaemon, error) {
	sweep(beside, cfg.Logger)
	dir, err := os.MkdirTemp(beside, cachePrefix)
	if err != nil {
		return nil, fmt.Errorf("making a place for pieces: %w", err)
	}
	own := &ownDaemon{dir: dir, ended: make(chan error, 1)}
	if own.Daemon, err = daemon.New(own.settings(cfg.Settings), cfg.Logger); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// It ends when the downloads have, not when they are told to: what runs still needs it.
	ctx, stop := context.WithCancel(context.Background())
	own.stop = stop
	go func() { own.ended <- own.Run(ctx) }()
	return own, nil
}

// cachePrefix begins the names of the directories that hold such a daemon's cache.
const cachePrefix = ".dfget-"

// sweep deletes the caches of dfgets that were killed: the kernel holds the lock of each that
// still runs.
func sweep(beside string, l *slog.Logger) {
	if beside == "" {
		beside = os.TempDir()
	}
	locks, _ := filepath.Glob(filepath.Join(beside, cachePrefix+"*", "data", "cache", "lock"))
	for _, lock := range locks {
		f, err := os.OpenFile(lock, os.O_RDWR, 0)
		if err != nil {
			continue // another user's
		}
		// Between making the lock and holding it, a dfget that starts needs but a moment.
		info, err := f.Stat()
		if err == nil && time.Since(info.ModTime()) > time.Minute && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			dir := filepath.Dir(filepath.Dir(filepath.Dir(lock)))
			if err := os.RemoveAll(dir); err != nil {
				l.Warn("the cache of a dfget that was killed could not be deleted", "directory", dir, "error", err)
			}
		}
		f.Close()
	}
}

func (o *ownDaemon) settings(s config.Dfget) (d config.Dfdaemon) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	d.Node = config.Node{Name: host + " (dfget)", DataDir: filepath.Join(o.dir, "data")}
	d.Mirror.Listen, d.API.Listen, d.Peer.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	d.Cluster, d.Supernodes = s.Cluster, s.Supernodes
	if !s.Cluster.Secret.IsZero() || s.Cluster.Insecure {
		d.Peer.Listen = ":0"
	}
	// No more than the file system's own bound: it is the user's file, on the user's disk.
	d.Cache = config.Cache{Quota: 1 << 60, HighWater: 0.95, LowWater: 0.85}
	d.Files.AllowHosts = []string{"*"}
	// The user could reach every address without us.
	d.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, {Prefix: netip.MustParsePrefix("::/0")}}
	d.DrainTimeout = time.Second
	return d
}

// api is where it answers.
func (o *ownDaemon) api() config.Address { return config.Address(o.Addrs()["api"]) }

// alone says why the peer found nobody to be a peer of, empty where it did.
func (o *ownDaemon) alone(ctx context.Context) string {
	s, err := node.FetchStatus(ctx, "dfget's own peer", o.api())
	if err != nil || !s.Embedded {
		return ""
	}
	for _, owner := range s.Owners {
		if owner.Error != "" {
			return owner.Addr + ": " + owner.Error
		}
	}
	return "no answer yet"
}

// end stops it and deletes its cache.
func (o *ownDaemon) end() error {
	o.stop()
	return errors.Join(<-o.ended, os.RemoveAll(o.dir))
}
