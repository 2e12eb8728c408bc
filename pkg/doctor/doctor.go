// Package doctor checks a node and says what to do about each problem: daemon, ports, mirror, clients, registries,
// supernodes, disk, limits, secrets.
//
// It never changes anything, and never prints a secret. All checks run at once, and none delays the result for longer
// than [Limit]. Start at [Examine].
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/version"
)

// Limit is the longest that [Examine] takes.
const Limit = 10 * time.Second

// checkLimit bounds one check; the rest of [Limit] is for collecting the results.
const checkLimit = 8 * time.Second

// Level is the severity of a finding.
type Level string

// The levels. A Warn costs speed or is worth knowing; a Fail breaks pulls.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Finding is the result of one check.
type Finding struct {
	Level Level `json:"level"`
	// Check names the part that was checked.
	Check string `json:"check"`
	// Found is the observation, Do the remedy; Do is empty if none is needed.
	Found string `json:"found"`
	Do    string `json:"do,omitempty"`
}

// Config is what to examine.
type Config struct {
	// Settings are the daemon's own.
	Settings config.Dfdaemon
	// Standard reports that upstreams is the default: one that is unreachable is then only a warning.
	Standard bool
	// Adopted reports that registries or mirror are those of the running daemon, without its logins.
	Adopted bool
	// Mirror is the mirror for the clients of this machine, Files are their configuration files.
	Mirror clientconf.Mirror
	Files  clientconf.Files
	// Installed reports whether a program is on this machine.
	Installed func(program string) bool
	// Version returns what a client's program prints for --version, empty if unknown; nil: all are unknown.
	Version func(client string) string
	// Proc is /proc; empty skips the check whether running clients have read their files. DockerSocket is the socket of
	// dockerd.
	Proc, DockerSocket string
	// NoFile is how many files this process may open; 0 asks the system.
	NoFile uint64
}

// Examine runs all checks at once and returns their findings in a fixed order.
func Examine(ctx context.Context, cfg Config) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	x := &exam{Config: cfg}
	x.running, x.runningErr = status(ctx, cfg.Settings.API.Listen)
	// Before the others, because it listens on the free ports for a moment.
	ports := x.ports()
	checks := []struct {
		name string
		do   func(context.Context) []Finding
	}{
		{"daemon", x.daemon}, {"ports", func(context.Context) []Finding { return ports }}, {"mirror", x.mirror},
		{"proxy", x.proxy}, {"clients", x.clients}, {"upstreams", x.upstreams}, {"supernodes", x.supernodes},
		{"disk", x.disk}, {"limits", x.limits}, {"secrets", x.secrets},
	}
	// mu is held to store and to read results; a late check stores its result after the deadline.
	var mu sync.Mutex
	results := make([][]Finding, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			found := c.do(ctx)
			mu.Lock()
			defer mu.Unlock()
			results[i] = found
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		// A check that watches the context ends soon; one on a hanging disk does not.
		late := time.NewTimer(Limit - checkLimit)
		defer late.Stop()
		select {
		case <-done:
		case <-late.C:
		}
	}
	mu.Lock()
	defer mu.Unlock()
	var out []Finding
	for i, c := range checks {
		if results[i] == nil {
			results[i] = []Finding{{Fail, c.name, fmt.Sprintf("no result within %s", checkLimit),
				"check what hangs: a disk, a network file system or a name server"}}
		}
		out = append(out, results[i]...)
	}
	return out
}

// exam is one examination.
type exam struct {
	Config
	// running is the daemon's status; runningErr is why there is none.
	running    api.Status
	runningErr error
}

// status requests the daemon's status. A running daemon responds at once.
func status(ctx context.Context, at config.Address) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return apiclient.FetchStatus(ctx, "dfdaemon", string(at))
}

// daemon checks that the daemon runs, is ready and has the version of this program, and reports its problems.
func (x *exam) daemon(context.Context) []Finding {
	if x.runningErr != nil {
		return []Finding{{Fail, "daemon", x.runningErr.Error(),
			"start dfdaemon, or pass its address with --api-listen or its --config"}}
	}
	s := x.running
	f := Finding{OK, "daemon", fmt.Sprintf("running since %s, ready", s.Started.Format(time.DateTime)), ""}
	if !s.Ready {
		f = Finding{Fail, "daemon", "running, not ready: " + strings.Join(s.Missing, "; "), "read its log"}
	}
	out := []Finding{f}
	if x.Adopted {
		out = append(out, Finding{OK, "daemon", "its registries and its mirror are checked, without its own logins: " +
			"pass its --config or its flags to check those, too", ""})
	}
	if s.Version != version.Current() {
		out = append(out, Finding{Warn, "daemon",
			fmt.Sprintf("has version %s, this program has %s", s.Version, version.Current()), "restart dfdaemon"})
	}
	if p := s.Pulls; p != nil && p.Failure != nil {
		out = append(out, Finding{Warn, "daemon",
			fmt.Sprintf("%d of %d pulls failed since its start, the last at %s: %s: %s", p.Failed,
				p.OK+p.Refused+p.Failed+p.Canceled, p.Failure.At.Local().Format(time.DateTime), p.Failure.Name,
				p.Failure.Error), "read its log, which has a line for each"})
	}
	for _, o := range s.Owners {
		if skew := time.Duration(o.Skew * float64(time.Second)).Abs(); skew >= identity.ClockNotice {
			level, found := Warn, fmt.Sprintf("its clock and the clock of owner %s differ by %s", o.Addr, skew)
			if skew > identity.ClockSkew {
				level, found = Fail, found+"; it cannot use that owner"
			}
			out = append(out, Finding{level, "daemon", found, "correct the wrong clock (NTP)"})
		}
	}
	out = append(out, rotation(s)...)
	for _, u := range s.PurgeFailures {
		out = append(out, Finding{Fail, "daemon", fmt.Sprintf("cannot delete the purged task %s: %s",
			u.Task.Short(), u.Why),
			"repair the disk of node.dataDir; the daemon tries again"})
	}
	if s.BadPieces > 0 {
		out = append(out, Finding{Warn, "daemon", cli.Plural(int(s.BadPieces), "piece", "pieces") +
			" from other nodes did not match the digest",
			"read its log, which names the senders; their disk or memory may be bad"})
	}
	return out
}

// rotation reports a change of the cluster secret that is not at its end.
func rotation(s api.Status) (out []Finding) {
	if len(s.Secrets) < 2 {
		return nil
	}
	first := s.Secrets[0].Fingerprint
	for _, u := range s.Secrets[1:] {
		what := fmt.Sprintf("the cluster secret %s is accepted in addition to the first one, %s: ", u.Fingerprint, first)
		if u.Removed {
			what = fmt.Sprintf("the cluster secret %s was removed, and its connections end soon: ",
				u.Fingerprint)
		}
		found := what + cli.Plural(u.Connections, "connection uses it", "connections use it")
		if !u.Last.IsZero() {
			found += fmt.Sprintf(", last used at %s by %s", u.Last.Local().Format(time.DateTime), u.Address)
		}
		do := "when every host has " + first + " first and none uses the other one, remove it (docs/security.md)"
		if s.RenewingProofs {
			do = "wait: the signatures of stored tasks are renewed now"
		}
		out = append(out, Finding{Warn, "daemon", found, do})
	}
	return out
}

// Failed counts the findings that are failures.
func Failed(list []Finding) (n int) {
	for _, f := range list {
		if f.Level == Fail {
			n++
		}
	}
	return n
}

// Write writes findings for people: a line each, and another one for the remedy.
func Write(w io.Writer, list []Finding) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Level, f.Check, oneLine(f.Found))
		if f.Do != "" {
			fmt.Fprintf(tw, "\t\t→ %s\n", oneLine(f.Do))
		}
	}
	return tw.Flush()
}

// WriteJSON writes findings for programs, as a JSON list.
func WriteJSON(w io.Writer, list []Finding) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(append([]Finding{}, list...))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// in runs a check for all elements at once and returns the findings in the order of the elements.
func in[T any](list []T, check func(T) []Finding) []Finding {
	results := make([][]Finding, len(list))
	var wg sync.WaitGroup
	for i, e := range list {
		wg.Go(func() { results[i] = check(e) })
	}
	wg.Wait()
	return slices.Concat(results...)
}
