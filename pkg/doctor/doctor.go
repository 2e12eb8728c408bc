// Package doctor looks whether a node does its work, and says what to do where it does not:
// clients, mirror, registries, supernodes, disk, limits.
//
// It only looks: it changes nothing, and it says no more of a secret than whether it was
// taken. All checks run at once and none holds the answer up for longer than [Limit]. Start
// at [Examine].
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
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/version"
)

// Limit is the longest that [Examine] takes.
const Limit = 10 * time.Second

// checkLimit bounds one check, so that what it found can still be told.
const checkLimit = 8 * time.Second

// Level says how bad a finding is.
type Level string

// The levels. Warn is what costs speed or is worth knowing, Fail what keeps pulls from
// working as they should.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Finding is one thing that was checked.
type Finding struct {
	Level Level `json:"level"`
	// Check names what was looked at.
	Check string `json:"check"`
	// Found is what was seen, Do what to do about it; empty when all is well.
	Found string `json:"found"`
	Do    string `json:"do,omitempty"`
}

// Config says what to examine.
type Config struct {
	// Settings are those of the daemon, as it reads them.
	Settings config.Dfdaemon
	// Standard says that the upstreams are those that nobody chose: not reaching one of them
	// is then no fault.
	Standard bool
	// Mirror is what clients of this machine are told, Files where their files are.
	Mirror clientconf.Mirror
	Files  clientconf.Files
	// Installed reports whether a program is on this machine.
	Installed func(program string) bool
	// Proc is where the processes of this machine are told of, /proc; empty does not look whether
	// clients that run have read their files. DockerSocket is where dockerd is asked.
	Proc, DockerSocket string
	// NoFile is the most files that this process may open; 0 asks the system.
	NoFile uint64
}

// Examine makes all checks at once and returns what they found, in a fixed order.
func Examine(ctx context.Context, cfg Config) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	x := &exam{Config: cfg}
	x.running, x.runningErr = status(ctx, cfg.Settings.API.Listen)
	// Before the others, because it takes free ports for a moment.
	ports := x.ports()
	checks := []struct {
		name string
		do   func(context.Context) []Finding
	}{
		{"daemon", x.daemon}, {"ports", func(context.Context) []Finding { return ports }}, {"mirror", x.mirror}, {"proxy", x.proxy}, {"clients", x.clients}, {"upstreams", x.upstreams},
		{"supernodes", x.supernodes}, {"disk", x.disk}, {"limits", x.limits}, {"secrets", x.secrets},
	}
	// mu is held to store and to read results, which arrive after their time, too.
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
		// Who heeds the context is done soon; a disk that hangs does not.
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
			results[i] = []Finding{{Fail, c.name, fmt.Sprintf("no answer within %s", checkLimit), "look what hangs: a disk, a network file system, a name server"}}
		}
		out = append(out, results[i]...)
	}
	return out
}

// exam is one examination.
type exam struct {
	Config
	// running is the daemon's own status, or runningErr why there is none.
	running    api.Status
	runningErr error
}

// status asks the daemon how it is. A daemon that is there answers in no time.
func status(ctx context.Context, at config.Address) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return node.FetchStatus(ctx, "dfdaemon", at)
}

// daemon tells whether it runs, is ready, and is the version that was installed.
func (x *exam) daemon(context.Context) []Finding {
	if x.runningErr != nil {
		return []Finding{{Fail, "daemon", x.runningErr.Error(), "start dfdaemon, or name its address with --api-listen or its --config"}}
	}
	s := x.running
	f := Finding{OK, "daemon", fmt.Sprintf("runs since %s, ready", s.Started.Format(time.DateTime)), ""}
	if !s.Ready {
		f = Finding{Fail, "daemon", "runs, and is not ready: " + strings.Join(s.Missing, "; "), "see its log"}
	}
	out := []Finding{f}
	if s.Version != version.Current() {
		out = append(out, Finding{Warn, "daemon", fmt.Sprintf("runs version %s, and this program is %s", s.Version, version.Current()), "restart dfdaemon"})
	}
	if p := s.Pulls; p != nil && p.Failure != nil {
		out = append(out, Finding{Warn, "daemon", fmt.Sprintf("%d of %d pulls failed since it runs, the last at %s: %s: %s",
			p.Failed, p.OK+p.Refused+p.Failed+p.Canceled, p.Failure.At.Local().Format(time.DateTime), p.Failure.Name, p.Failure.Error), "its log has a line for each"})
	}
	for _, o := range s.Owners {
		if skew := time.Duration(o.Skew * float64(time.Second)).Abs(); skew >= identity.ClockNotice {
			level, found := Warn, fmt.Sprintf("its clock and that of owner %s are %s apart", o.Addr, skew)
			if skew > identity.ClockSkew {
				level, found = Fail, found+": it does without that owner"
			}
			out = append(out, Finding{level, "daemon", found, "set the clock that is wrong (NTP)"})
		}
	}
	for _, u := range s.PurgeFailures {
		out = append(out, Finding{Fail, "daemon", fmt.Sprintf("cannot drop task %s, which was withdrawn: %s", u.Task.Short(), u.Why), "mend the disk of node.dataDir; the daemon tries again by itself"})
	}
	if s.BadPieces > 0 {
		out = append(out, Finding{Warn, "daemon", fmt.Sprintf("%d pieces from others did not match their digest", s.BadPieces), "see its log, which names who sent them: a bad disk or memory there"})
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

// Write tells findings to a person, one line each and one more for what to do.
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

// WriteJSON tells findings to a program, as a list.
func WriteJSON(w io.Writer, list []Finding) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(append([]Finding{}, list...))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// in runs one check per element at once; the findings are in the order of the elements.
func in[T any](list []T, check func(T) []Finding) []Finding {
	results := make([][]Finding, len(list))
	var wg sync.WaitGroup
	for i, e := range list {
		wg.Go(func() { results[i] = check(e) })
	}
	wg.Wait()
	return slices.Concat(results...)
}
