package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/clientconf"
)

// programs are the programs of each client. The first one is its daemon, if it has one.
var programs = map[clientconf.Client][]string{
	clientconf.Containerd: {"containerd"}, clientconf.Docker: {"dockerd"},
	clientconf.Podman: {"podman", "buildah", "skopeo"},
	clientconf.CRIO:   {"crio"}, clientconf.BuildKit: {"buildkitd"},
	clientconf.K3s: {"k3s"}, clientconf.RKE2: {"rke2"},
}

// clients checks for each client on this machine whether it uses the mirror.
func (x *exam) clients(ctx context.Context) (out []Finding) {
	for _, c := range clientconf.Clients() {
		if !slices.ContainsFunc(programs[c], x.Installed) {
			continue
		}
		name := "client " + string(c)
		options := clientconf.Options{}
		if x.Version != nil {
			options.Version = x.Version(string(c))
		}
		plan, err := clientconf.Configure(c, x.Files, x.Mirror, options)
		if err != nil {
			out = append(out, Finding{Warn, name, "cannot be configured for the mirror: " + err.Error(),
				"correct that, then run: dfdaemon configure " + string(c)})
			continue
		}
		what := ""
		if len(plan.Changes) > 0 {
			// It may be configured with --digests-only.
			digests := x.Mirror
			digests.DigestsOnly = true
			if other, err := clientconf.Configure(c, x.Files, digests, options); err == nil && len(other.Changes) == 0 {
				plan, what = other, " for digests"
			}
		}
		if len(plan.Changes) == 0 {
			if found, do := x.unread(ctx, c); found != "" {
				out = append(out, Finding{Warn, name, "is configured for the mirror at " + x.Mirror.Addr +
					", but " + found, do})
				continue
			}
			out = append(out, Finding{OK, name, "uses the mirror at " + x.Mirror.Addr + what, ""})
			out = append(out, x.loginless(c)...)
			continue
		}
		var files []string
		for _, change := range plan.Changes {
			files = append(files, change.Path)
		}
		if more := len(files) - 3; more > 0 {
			files = append(files[:3], fmt.Sprintf("%d more", more))
		}
		out = append(out, Finding{Warn, name, "does not use the mirror at " + x.Mirror.Addr +
			" for every registry: see " +
			strings.Join(files, ", "), "run: dfdaemon configure " + string(c) + " (--dry-run shows the changes)"})
	}
	if len(out) == 0 {
		out = []Finding{{Warn, "clients",
			"found none of containerd, dockerd, podman, buildah, skopeo, crio, buildkitd, k3s and rke2",
			"docs/clients.md describes other clients"}}
	}
	return out
}

// loginless reports that a client gives the mirror no login, for the registries for which this node has none.
func (x *exam) loginless(c clientconf.Client) []Finding {
	if c != clientconf.Docker && c != clientconf.BuildKit || x.Adopted {
		return nil // the logins of an adopted daemon are unknown
	}
	var hosts []string
	for _, u := range x.Settings.Upstreams {
		if u.Username == "" && u.DockerConfig == "" {
			hosts = append(hosts, u.Host)
		}
	}
	if len(hosts) == 0 {
		return nil
	}
	return []Finding{{OK, "client " + string(c), "gives a mirror no login, so private images of " +
		strings.Join(hosts, ", ") + " come from the registry itself, past the cluster",
		"if you pull such images, give this node and the supernodes a login: dockerConfig, or username and passwordFile, " +
			"of the upstream"}}
}

// Fractions of a file system: fewer free bytes or inodes are a warning.
const (
	freeMin   = 0.05
	inodesMin = 0.02
)

// roomMin is the least space for the cache, in bytes, which large layers need at once.
const roomMin = 1 << 30

// disk checks that the cache has enough space for its quota.
func (x *exam) disk(context.Context) []Finding {
	dir := filepath.Join(x.Settings.Node.DataDir, "cache")
	if x.runningErr == nil && x.running.Cache.Dir != "" {
		dir = x.running.Cache.Dir
	}
	at := dir
	for {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return []Finding{{Fail, "disk", err.Error(), "give the data directory to the user that dfdaemon runs as"}}
		}
		at = filepath.Dir(at) // the daemon creates it at its first start
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return []Finding{{Fail, "disk", fmt.Sprintf("%s: %v", at, err), "check that file system"}}
	}
	var out []Finding
	bad := func(l Level, do, format string, args ...any) {
		out = append(out, Finding{l, "disk", dir + ": " + fmt.Sprintf(format, args...), do})
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		bad(Fail, "run this as the user of dfdaemon; if it is that user, give it the directory (chown -R), or mount "+
			"it writable", "%v", err)
	}
	free, size := int64(st.Bavail)*int64(st.Bsize), int64(st.Blocks)*int64(st.Bsize)
	bytes := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	switch quota, used := x.quota(); {
	case free == 0:
		bad(Fail, "free space, lower cache.quota, or set node.dataDir to another directory", "the disk is full")
	case free+used < roomMin:
		bad(Warn, "free space, or set node.dataDir to a larger disk",
			"only %s are free; a layer that does not fit comes from its registry, past the cluster", bytes(free))
	case quota > 0 && quota-used > free:
		bad(Warn, "free space, or lower cache.quota", "%s are free, but the cache may grow by %s", bytes(free),
			bytes(quota-used))
	case float64(free) < freeMin*float64(size):
		bad(Warn, "free space, or lower cache.quota", "only %s of %s are free", bytes(free), bytes(size))
	}
	if st.Files > 0 { // some file systems report none
		switch {
		case st.Ffree == 0:
			bad(Fail, "delete small files, or set node.dataDir to another directory", "there are no inodes left")
		case float64(st.Ffree) < inodesMin*float64(st.Files):
			bad(Warn, "delete small files, or set node.dataDir to another directory", "only %d of %d inodes are free",
				st.Ffree, st.Files)
		}
	}
	if out == nil {
		out = []Finding{{OK, "disk", fmt.Sprintf("%s: %s free", dir, bytes(free)), ""}}
	}
	return out
}

// quota returns the quota and the use of the cache: as the daemon reports them, else as set.
func (x *exam) quota() (quota, used int64) {
	if x.runningErr == nil {
		return x.running.Cache.Quota, x.running.Cache.Bytes
	}
	return int64(x.Settings.Cache.Quota), 0
}

// noFileMin is how many open files a busy node needs, for connections and pieces.
const noFileMin = 8192

// limits checks how many files may be open. Go raises the soft limit to the hard one.
func (x *exam) limits(context.Context) []Finding {
	most, whose := x.NoFile, "this shell"
	if most == 0 {
		var r unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return []Finding{{Warn, "limits", err.Error(), "run: ulimit -Hn"}}
		}
		most = r.Max
	}
	if most < noFileMin {
		return []Finding{{Warn, "limits", fmt.Sprintf("%d open files at most in %s; a busy node may need %d",
			most, whose, noFileMin), "set LimitNOFILE=65536 in dfdaemon's unit, or raise ulimit -Hn before its start"}}
	}
	return []Finding{{OK, "limits", fmt.Sprintf("%d open files at most in %s", most, whose), ""}}
}
