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

// programs are what each client is called when it is installed. The first is what runs, where
// something does.
var programs = map[clientconf.Client][]string{
	clientconf.Containerd: {"containerd"}, clientconf.Docker: {"dockerd"}, clientconf.Podman: {"podman", "buildah", "skopeo"}, clientconf.CRIO: {"crio"},
	clientconf.BuildKit: {"buildkitd"},
}

// clients tells of each client on this machine whether it asks the mirror.
func (x *exam) clients(ctx context.Context) (out []Finding) {
	for _, c := range clientconf.Clients() {
		if !slices.ContainsFunc(programs[c], x.Installed) {
			continue
		}
		name := "client " + string(c)
		plan, err := clientconf.Configure(c, x.Files, x.Mirror, clientconf.Options{})
		if err != nil {
			out = append(out, Finding{Warn, name, "cannot be pointed at the mirror: " + err.Error(), "follow that, then: dfdaemon configure " + string(c)})
			continue
		}
		what := ""
		if len(plan.Changes) > 0 {
			// It may have been told to leave tags to the registry.
			digests := x.Mirror
			digests.DigestsOnly = true
			if other, err := clientconf.Configure(c, x.Files, digests, clientconf.Options{}); err == nil && len(other.Changes) == 0 {
				plan, what = other, " for what it knows the digest of"
			}
		}
		if len(plan.Changes) == 0 {
			if found, do := x.unread(ctx, c); found != "" {
				out = append(out, Finding{Warn, name, "is told to ask " + x.Mirror.Addr + " first, but " + found, do})
				continue
			}
			out = append(out, Finding{OK, name, "asks " + x.Mirror.Addr + " first" + what, ""})
			continue
		}
		var files []string
		for _, change := range plan.Changes {
			files = append(files, change.Path)
		}
		if more := len(files) - 3; more > 0 {
			files = append(files[:3], fmt.Sprintf("%d more", more))
		}
		out = append(out, Finding{Warn, name, "does not ask " + x.Mirror.Addr + " for every registry: see " + strings.Join(files, ", "),
			"dfdaemon configure " + string(c) + " (--dry-run shows what it would change)"})
	}
	if len(out) == 0 {
		out = []Finding{{Warn, "clients", "none of containerd, dockerd, podman, buildah, skopeo, crio and buildkitd is found", "docs/clients.md tells how others are pointed at the mirror"}}
	}
	return out
}

// Free space and inodes below these fractions of a file system are worth a word.
const (
	freeMin   = 0.05
	inodesMin = 0.02
)

// disk tells whether the cache can hold what it may.
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
		at = filepath.Dir(at) // it is made at the first start
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return []Finding{{Fail, "disk", fmt.Sprintf("%s: %v", at, err), "look at that file system"}}
	}
	var out []Finding
	bad := func(l Level, do, format string, args ...any) {
		out = append(out, Finding{l, "disk", dir + ": " + fmt.Sprintf(format, args...), do})
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		bad(Fail, "run this as the user that dfdaemon runs as; if it is, give it the directory (chown -R), or mount it writable", "%v", err)
	}
	free, size := int64(st.Bavail)*int64(st.Bsize), int64(st.Blocks)*int64(st.Bsize)
	bytes := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	switch quota, used := x.quota(); {
	case free == 0:
		bad(Fail, "free some, lower cache.quota, or name another directory with node.dataDir", "the disk is full")
	case quota > 0 && quota-used > free:
		bad(Warn, "free some, or lower cache.quota", "%s are free, and the cache may grow by %s", bytes(free), bytes(quota-used))
	case float64(free) < freeMin*float64(size):
		bad(Warn, "free some, or lower cache.quota", "only %s of %s are free", bytes(free), bytes(size))
	}
	if st.Files > 0 { // some file systems have no such number
		switch {
		case st.Ffree == 0:
			bad(Fail, "delete small files, or name another directory with node.dataDir", "there are no inodes left")
		case float64(st.Ffree) < inodesMin*float64(st.Files):
			bad(Warn, "delete small files, or name another directory with node.dataDir", "only %d of %d inodes are free", st.Ffree, st.Files)
		}
	}
	if out == nil {
		out = []Finding{{OK, "disk", fmt.Sprintf("%s: %s free", dir, bytes(free)), ""}}
	}
	return out
}

// quota is what the cache may hold and what it holds: as the daemon says, else as set.
func (x *exam) quota() (quota, used int64) {
	if x.runningErr == nil {
		return x.running.Cache.Quota, x.running.Cache.Bytes
	}
	return int64(x.Settings.Cache.Quota), 0
}

// noFileMin is how many open files a busy node may need: connections of peers and clients,
// and the files of contents.
const noFileMin = 8192

// limits tells how many files may be open. Go raises the soft limit to the hard one.
func (x *exam) limits(context.Context) []Finding {
	most, whose := x.NoFile, "this shell"
	if most == 0 {
		var r unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return []Finding{{Warn, "limits", err.Error(), "see ulimit -Hn"}}
		}
		most = r.Max
	}
	if most < noFileMin {
		return []Finding{{Warn, "limits", fmt.Sprintf("%d open files at most in %s; a busy node may need %d", most, whose, noFileMin),
			"LimitNOFILE=65536 in dfdaemon's unit, or ulimit -Hn before its start"}}
	}
	return []Finding{{OK, "limits", fmt.Sprintf("%d open files at most in %s", most, whose), ""}}
}
