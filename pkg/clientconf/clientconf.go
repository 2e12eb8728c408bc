// Package clientconf points container clients at this node's mirror, by writing into the
// files that they read: containerd, Docker, Podman, CRI-O, BuildKit.
//
// What it does not own stays byte for byte, and what it wrote it can take out again: the
// file is then what it was before. A file that it cannot edit so is left alone, and the
// error says what to write by hand. Planning reads only; [Plan.Apply] writes. Start at
// [Configure].
package clientconf

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// Client is a kind of client that can be pointed at a mirror.
type Client string

// The clients.
const (
	Containerd Client = "containerd"
	Docker     Client = "docker"
	Podman     Client = "podman"
	CRIO       Client = "crio"
	BuildKit   Client = "buildkit"
)

// Clients lists all clients that can be configured.
func Clients() []Client { return []Client{Containerd, Docker, Podman, CRIO, BuildKit} }

// ReadAtStart is the file that a client reads at its start and never again; empty for one that
// follows without a restart.
func ReadAtStart(c Client) string {
	switch c {
	case Containerd:
		return containerdConfig
	case BuildKit:
		return buildkitConfig
	}
	return ""
}

// Mirror is what clients are told.
type Mirror struct {
	// Addr is host:port of the mirror, as the client reaches it.
	Addr string
	// Upstreams are the registries to pull through it.
	Upstreams []Upstream
	// DigestsOnly leaves the resolving of tags to the registry itself: the client asks the
	// mirror only for what it knows the digest of.
	DigestsOnly bool
}

// Upstream is one registry.
type Upstream struct {
	// Host is the registry as image names write it, in the spelling of oci.ParseHost.
	Host string
	// PlainHTTP says that the registry speaks HTTP, which the client must know for when it
	// asks the registry itself.
	PlainHTTP bool
	// CA, ClientCert and ClientKey are files that the client needs for the registry itself;
	// empty for none.
	CA, ClientCert, ClientKey string
}

// url is the mirror's base URL.
func (m Mirror) url() string { return "http://" + m.Addr }

// Plan is what is to be done, for people to read and for [Plan.Apply] to do.
type Plan struct {
	Client Client
	// Changes are in the order in which they are to be made; none means that all is as it
	// should be.
	Changes []Change
	// Notes are what the operator should know, a sentence or two each.
	Notes []string
	// Restart is the command after which the client follows the changes; empty where it
	// does so by itself. RestartNote says what that does to what runs.
	Restart, RestartNote string
}

// Change is what becomes of one file.
type Change struct {
	// Path is the file as the client knows it, without the root of [Files].
	Path string
	// Old and New are its contents; nil is a file that is not there.
	Old, New []byte
	// Dirs is how many directories above a file that goes are to go too, once empty.
	Dirs int
	// like is the file whose mode and owner a new one takes; empty for none.
	like string
}

// Diff tells the changes as a unified diff; empty when there are none.
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
			// A diff has no words for an empty file that comes or goes.
			out = fmt.Appendf(out, "diff %s %s\n", from, to)
		}
		out = append(out, diff.Diff(from, c.Old, to, c.New)...)
	}
	return out
}

// Options say where things are when they are not at their usual place.
type Options struct {
	// Config is the client's own configuration file where it is not the usual one; for
	// Podman and CRI-O the directory of drop-in files.
	Config string
}

// Configure plans how the client comes to use the mirror. It may be repeated: it plans
// nothing where all is done, and what was written for another address or list of registries
// is brought up to date. An error says what stands in the way, and what to do.
func Configure(c Client, f Files, m Mirror, o Options) (Plan, error) {
	if _, _, err := net.SplitHostPort(m.Addr); err != nil {
		return Plan{}, fmt.Errorf("the mirror's address %q: %w", m.Addr, err)
	}
	if len(m.Upstreams) == 0 {
		return Plan{}, errors.New("there is no registry to pull through the mirror: name some with --upstreams")
	}
	return planned(c, &planner{files: f, mirror: m, opts: o})
}

// Remove plans how the client comes to be as if [Configure] had never been. The mirror's
// address is needed for Docker, whose file has no place for a mark of ours.
func Remove(c Client, f Files, m Mirror, o Options) (Plan, error) {
	return planned(c, &planner{files: f, mirror: m, opts: o, undo: true})
}

func planned(c Client, p *planner) (Plan, error) {
	p.plan.Client = c
	makers := map[Client]func(*planner) error{
		Containerd: (*planner).containerd, Docker: (*planner).docker, Podman: (*planner).podman, CRIO: (*planner).crio, BuildKit: (*planner).buildkit,
	}
	mk, ok := makers[c]
	if !ok {
		return Plan{}, fmt.Errorf("%q is no client that can be configured; these are: %s", c, join(Clients()))
	}
	if err := mk(p); err != nil {
		return Plan{}, err
	}
	if len(p.plan.Changes) == 0 {
		p.plan.Restart, p.plan.RestartNote = "", ""
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

// planner gathers what is to be done to one client.
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

// edit is how a file comes to say what we want, and how that is taken out again. nil is a
// file that is not there. add of what add returned is the same again.
type edit interface {
	add(old []byte) ([]byte, error)
	remove(now []byte) ([]byte, error)
}

// keptSuffix names the file beside, that keeps an original which could not be restored by
// taking our part out.
const keptSuffix = ".before-darter"

// file plans one file: to be edited, or when undoing to be restored. It reports whether
// there is something to do.
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

// restore plans to take out of a file what add put in.
func (p *planner) restore(path string, e edit, now, kept []byte) (bool, error) {
	next, err := e.remove(now)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	if kept != nil {
		// Only an original that leads to what is there now: the file may have been changed
		// by others since, and their changes stay.
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

// same tells whether two contents are the same; a missing file is not an empty one.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && string(a) == string(b) }
