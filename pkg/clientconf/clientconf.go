// Package clientconf edits the configuration of containerd, Docker, Podman, CRI-O, BuildKit, k3s and RKE2 so that they
// try this node's mirror first.
//
// It never changes a byte that it does not own, and [Remove] restores each file as it was. It leaves a file alone that
// it cannot edit in this way; the error says what to write by hand. Planning only reads; [Plan.Apply] writes. Start at
// [Configure].
package clientconf

import (
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// Client is a kind of client.
type Client string

// The clients.
const (
	Containerd Client = "containerd"
	Docker     Client = "docker"
	Podman     Client = "podman"
	CRIO       Client = "crio"
	BuildKit   Client = "buildkit"
	K3s        Client = "k3s"
	RKE2       Client = "rke2"
)

// Clients lists all clients that can be configured.
func Clients() []Client { return []Client{Containerd, Docker, Podman, CRIO, BuildKit, K3s, RKE2} }

// ReadAtStart returns the file that a client reads only at its start, or nothing for a client that needs no restart.
func ReadAtStart(c Client) string {
	switch c {
	case Containerd:
		return containerdConfig
	case BuildKit:
		return buildkitConfig
	case K3s, RKE2:
		return rancherConfig(c)
	}
	return ""
}

// Mirror is the mirror that clients use.
type Mirror struct {
	// Addr is the host:port at which clients reach the mirror.
	Addr string
	// Upstreams are the registries to pull through it.
	Upstreams []Upstream
	// DigestsOnly lets clients resolve tags at the registry: they request only digests from the mirror.
	DigestsOnly bool
}

// Upstream is one registry.
type Upstream struct {
	// Host is the registry as image names write it, normalised by oci.ParseHost.
	Host string
	// PlainHTTP reports that the registry speaks HTTP. The client needs it for its own requests to the registry.
	PlainHTTP bool
	// CA, ClientCert and ClientKey are the files that the client needs for the registry itself, empty for none.
	CA, ClientCert, ClientKey string
}

// url is the mirror's base URL.
func (m Mirror) url() string { return "http://" + m.Addr }

// Plan is a list of changes, for people to read and for [Plan.Apply] to make.
type Plan struct {
	Client Client
	// Changes are in the order of Apply. None means that nothing has to change.
	Changes []Change
	// Notes are hints for the operator, a sentence or two each.
	Notes []string
	// Restart is the command that makes the client read the changes, empty if it needs none. RestartNote is its effect on
	// running containers and pulls.
	Restart, RestartNote string
	// Pending reports that the client may not use the mirror, for one registry at least, before the operator takes a step
	// that a note names.
	Pending bool
}

// Change is the change of one file.
type Change struct {
	// Path is the client's path of the file, without the root of [Files].
	Path string
	// Old and New are the contents before and after; nil is a file that does not exist.
	Old, New []byte
	// Dirs is how many directories above a deleted file to delete if they are empty.
	Dirs int
	// like is the file from which a new one takes mode and owner, empty for none.
	like string
}

// Diff returns the changes as a unified diff.
func (p Plan) Diff() []byte {
	var out []byte
	for _, c := range p.Changes {
		from, to := "a"+c.Path, "b"+c.Path
		if c.Old == nil {
			from = "/dev/null"
		}
		if c.New == nil {
			to = "/dev/null"
		}
		if len(c.Old) == 0 && len(c.New) == 0 {
			// A unified diff cannot show an empty file that appears or disappears.
			out = fmt.Appendf(out, "diff %s %s\n", from, to)
		}
		out = append(out, diff.Diff(from, c.Old, to, c.New)...)
	}
	return out
}

// Options override the usual paths.
type Options struct {
	// Config is the client's configuration file; for Podman and CRI-O the directory of drop-in files. Empty is the usual
	// one.
	Config string
	// Version is what the client's program prints for --version, empty if unknown. containerd 2.2 and newer need no
	// config_path.
	Version string
	// HostsOnly leaves containerd's own file as it is and writes hosts.toml files only.
	HostsOnly bool
	// HostsDir is the directory of these files with HostsOnly. Empty is what containerd's own file names, else the usual
	// one.
	HostsDir string
}

// Configure plans the changes that make a client use the mirror. It plans nothing if the client uses it already, and
// replaces an earlier address or list of registries. The error says what prevents it and what to do.
func Configure(c Client, f Files, m Mirror, o Options) (Plan, error) {
	if _, _, err := net.SplitHostPort(m.Addr); err != nil {
		return Plan{}, fmt.Errorf("the mirror's address %q: %w", m.Addr, err)
	}
	if len(m.Upstreams) == 0 {
		return Plan{}, errors.New("no registry to pull through the mirror: set --upstreams")
	}
	return planned(c, &planner{files: f, mirror: m, opts: o})
}

// Remove plans the changes that undo [Configure]. It needs the mirror's address for Docker, whose JSON has no comments
// to mark our part.
func Remove(c Client, f Files, m Mirror, o Options) (Plan, error) {
	return planned(c, &planner{files: f, mirror: m, opts: o, undo: true})
}

func planned(c Client, p *planner) (Plan, error) {
	p.plan.Client = c
	makers := map[Client]func(*planner) error{
		Containerd: (*planner).containerd, Docker: (*planner).docker, Podman: (*planner).podman, CRIO: (*planner).crio,
		BuildKit: (*planner).buildkit, K3s: (*planner).rancher, RKE2: (*planner).rancher,
	}
	mk, ok := makers[c]
	if !ok {
		return Plan{}, fmt.Errorf("unknown client %q; use one of: %s", c, join(Clients()))
	}
	if p.opts.HostsOnly && c != Containerd {
		return Plan{}, fmt.Errorf("hosts-only is about the hosts.toml files of containerd, and %s has none", c)
	}
	if p.opts.HostsDir != "" && !path.IsAbs(p.opts.HostsDir) {
		return Plan{}, fmt.Errorf("hosts-dir: %q is not an absolute path; write for example %s", p.opts.HostsDir,
			containerdCerts)
	}
	if err := mk(p); err != nil {
		return Plan{}, err
	}
	if len(p.plan.Changes) == 0 {
		p.plan.Restart, p.plan.RestartNote, p.plan.Pending = "", "", false
	}
	return p.plan, nil
}

func join(list []Client) string {
	var out []string
	for _, c := range list {
		out = append(out, string(c))
	}
	return strings.Join(out, ", ")
}

// planner collects the changes for one client.
type planner struct {
	files  Files
	mirror Mirror
	opts   Options
	undo   bool
	plan   Plan
}

func (p *planner) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(p.plan.Notes, text) {
		p.plan.Notes = append(p.plan.Notes, text)
	}
}

// edit adds our part to a file and removes it again. nil is a file that does not exist. add is idempotent.
type edit interface {
	add(old []byte) ([]byte, error)
	remove(now []byte) ([]byte, error)
}

// keptSuffix is the suffix of the copy of an original that removing our part cannot restore.
const keptSuffix = ".before-darter"

// file plans the edit of a file, or with undo its restoration. It reports whether anything changes.
func (p *planner) file(path string, e edit) (bool, error) {
	old, err := p.files.read(path)
	if err != nil {
		return false, err
	}
	kept, err := p.files.read(path + keptSuffix)
	if err != nil {
		return false, err
	}
	if p.undo {
		return p.restore(path, e, old, kept)
	}
	next, err := e.add(old)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if same(old, next) {
		return false, nil
	}
	before, err := e.remove(old)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	back, err := e.remove(next)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if !same(back, before) && kept == nil {
		p.change(Change{Path: path + keptSuffix, New: before, like: path})
	}
	p.change(Change{Path: path, Old: old, New: next})
	return true, nil
}

// restore plans to remove our part from a file.
func (p *planner) restore(path string, e edit, now, kept []byte) (bool, error) {
	next, err := e.remove(now)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if kept != nil {
		// Only if the original leads to the current content: otherwise others have changed the file since, and their
		// changes stay.
		if again, err := e.add(kept); err == nil && same(again, now) {
			next = kept
		}
		p.change(Change{Path: path + keptSuffix, Old: kept})
	}
	if same(now, next) {
		return kept != nil, nil
	}
	p.change(Change{Path: path, Old: now, New: next, Dirs: dirsOf(now)})
	return true, nil
}

func (p *planner) change(c Change) { p.plan.Changes = append(p.plan.Changes, c) }

// same reports whether two contents are equal. A missing file differs from an empty one.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && string(a) == string(b) }
