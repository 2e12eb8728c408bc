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

	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
)

// dialTimeout bounds the check whether a dfdaemon listens on this machine.
const dialTimeout = time.Second

// listens reports whether any program listens at the daemon's address.
func listens(ctx context.Context, at config.Address) bool {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, "tcp", string(at))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// ownDaemon is a dfdaemon in this process that runs as long as the downloads: the same code, on free ports,
// with a cache that is deleted at the end.
type ownDaemon struct {
	*daemon.Daemon
	dir   string
	lock  *os.File // of the directory: the process that gets it may delete the directory
	stop  context.CancelFunc
	ended chan error
}

// newOwnDaemon starts the daemon with a cache in parent, which should be on the file system of the target. The context
// ends the start, not the daemon.
func newOwnDaemon(start context.Context, cfg Config, parent string) (*ownDaemon, error) {
	dir, lock, err := newCache(parent)
	if err != nil {
		return nil, fmt.Errorf("creating a cache directory: %w", err)
	}
	own := &ownDaemon{dir: dir, lock: lock, ended: make(chan error, 1)}
	if own.Daemon, err = daemon.New(own.settings(cfg.Settings), cfg.Logger, node.WithStart(start)); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir), lock.Close())
	}
	// The downloads need the daemon until they have ended, also after their context is cancelled.
	ctx, stop := context.WithCancel(context.Background())
	own.stop = stop
	go func() { own.ended <- own.Run(ctx) }()
	return own, nil
}

// cachePrefix is the name prefix of the cache directories. Versions before the lock of the directory named theirs with
// oldPrefix alone.
const (
	cachePrefix = oldPrefix + "peer-"
	oldPrefix   = ".dfget-"
)

// newCache creates a cache directory and locks it, so that no other dfget deletes it.
func newCache(parent string) (dir string, lock *os.File, err error) {
	for try := 0; ; try++ {
		if dir, err = os.MkdirTemp(parent, cachePrefix); err != nil {
			return "", nil, err
		}
		if lock = locked(dir); lock != nil {
			return dir, lock, nil
		}
		// Another dfget deletes it, because it was not locked yet.
		if os.Remove(dir); try == 20 {
			return "", nil, fmt.Errorf("the file system of %s locks no directory, which a peer needs: set another TMPDIR",
				dir)
		}
	}
}

// locked opens and locks a directory. It returns nil if that is gone or locked by another process.
func locked(dir string) *os.File {
	// In a directory that others may write to, the name can be a pipe or a link.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		there, err := os.Stat(dir)
		if here, failed := f.Stat(); err == nil && failed == nil && os.SameFile(here, there) {
			return f
		}
	}
	f.Close()
	return nil
}

// sweep deletes the caches of killed dfgets: a dfget that still runs holds the lock of its cache.
func sweep(parent string, l *slog.Logger) {
	if parent == "" {
		parent = os.TempDir()
	}
	remove := func(dir string) {
		if err := os.RemoveAll(dir); err != nil {
			l.Warn("cannot delete the cache of a killed dfget", "directory", dir, "error", err)
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(parent, cachePrefix+"*"))
	for _, dir := range dirs {
		if lock := locked(dir); lock != nil {
			remove(dir)
			lock.Close()
		}
	}
	locks, _ := filepath.Glob(filepath.Join(parent, oldPrefix+"*", "data", "cache", "lock"))
	for _, lock := range locks {
		f, err := os.OpenFile(lock, os.O_RDWR, 0)
		if err != nil {
			continue // another user's
		}
		// A starting dfget creates the lock file a moment before it takes the lock.
		info, err := f.Stat()
		if err == nil && time.Since(info.ModTime()) > time.Minute &&
			unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			remove(filepath.Dir(filepath.Dir(filepath.Dir(lock))))
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
	// The file system is the only bound: the user asked for the file on this disk.
	d.Cache = config.Cache{Quota: 1 << 60, HighWater: 0.95, LowWater: 0.85}
	d.Files.AllowHosts = []string{"*"}
	// The daemon has the rights of the user, who can reach every address anyway.
	d.Files.AllowAddresses = []config.Network{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, {Prefix: netip.MustParsePrefix("::/0")},
	}
	d.DrainTimeout = time.Second
	return d
}

// api returns the address of the daemon's local API.
func (o *ownDaemon) api() config.Address { return config.Address(o.Addrs()["api"]) }

// noSupernode returns the reason why no supernode takes part, empty if one does.
func (o *ownDaemon) noSupernode(ctx context.Context) string {
	s, err := apiclient.FetchStatus(ctx, "dfget's own peer", string(o.api()))
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

// close stops the daemon and deletes its cache.
func (o *ownDaemon) close() error {
	o.stop()
	return errors.Join(<-o.ended, os.RemoveAll(o.dir), o.lock.Close())
}
