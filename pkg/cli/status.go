package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/identity"
)

// WriteStatus prints a status for people.
func WriteStatus(w io.Writer, s api.Status, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	out := &statusWriter{w: tw, now: now}
	out.program(s)
	out.owners(s)
	out.faults(s)
	out.secrets(s)
	out.traffic(s)
	out.downloads(s)
	return tw.Flush()
}

// statusWriter writes the lines of a status. Names in capitals want the operator's attention.
type statusWriter struct {
	w   io.Writer
	now time.Time
}

func (w *statusWriter) line(name, format string, args ...any) {
	fmt.Fprintf(w.w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}

func sizeOf(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

// program writes the state of the program, and where it listens.
func (w *statusWriter) program(s api.Status) {
	state := "ready"
	if !s.Ready {
		state = "NOT READY"
	}
	up := w.now.Sub(s.Started)
	if s.Uptime > 0 { // by the monotonic clock
		up = time.Duration(s.Uptime * float64(time.Second))
	}
	w.line(s.Program, "%s, up %s, version %s", state, up.Round(time.Second), s.Version)
	for _, m := range s.Missing {
		w.line("LACKS", "%s", m)
	}
	w.line("node", "%s (%s)%s", s.Host.Name, s.Host.ID.Short(), prefixed(", zone ", s.Host.Zone))
	for _, name := range []string{"mirror", "proxy", "api", "admin", "health", "peer", "gossip", "preheat"} {
		if addr := s.Listen[name]; addr != "" {
			w.line(name, "%s", addr)
		}
		if name != "mirror" {
			continue
		}
		for _, other := range slices.Sorted(maps.Keys(s.Listen)) { // those of mirror.listeners
			if registry, ok := strings.CutPrefix(other, "mirror of "); ok {
				w.line("mirror", "%s, for %s if a request names no registry", s.Listen[other], registry)
			}
		}
	}
}

// owners writes which other hosts lead tasks.
func (w *statusWriter) owners(s api.Status) {
	for _, o := range s.Owners {
		word := "answers"
		if !o.Alive {
			word = "DOES NOT ANSWER" + prefixed(": ", o.Error)
		} else if skew := time.Duration(o.Skew * float64(time.Second)); skew.Abs() >= identity.ClockNotice {
			way := "AHEAD OF"
			if skew < 0 {
				way = "BEHIND"
			}
			word += fmt.Sprintf(", ITS CLOCK IS %s %s this one: set the one that is wrong (NTP)", skew.Abs(), way)
		}
		w.line(map[bool]string{false: "supernode", true: "standby"}[o.Standby], "%s %s", o.Addr, word)
	}
	switch {
	case s.OnNode() && len(s.Owners) == 0:
		w.line("supernode", "none configured: this node leads its own tasks")
	case s.OnNode() && s.Embedded:
		w.line("", "this node leads its own tasks meanwhile")
	case !s.OnNode():
		if s.Listen["gossip"] != "" && len(s.Owners) == 0 {
			w.line("supernode", "no other is known")
		}
		w.line("hosts", "%s here", Plural(s.Hosts, "announces", "announce"))
	}
}

// faults writes what this host and other hosts lack or refuse.
func (w *statusWriter) faults(s api.Status) {
	if s.Late {
		w.line("LATE", "this program's own timers come late, %s since its start: it lacks CPU time, so it waits longer "+
			"for other hosts and leaves the lead to them",
			time.Duration(s.Lost*float64(time.Second)).Round(100*time.Millisecond))
	}
	if s.Clocks != "" {
		w.line("REFUSED", "hosts because of their clocks, the last: %s", s.Clocks)
	}
	for _, f := range s.PurgeFailures {
		w.line("NOT DELETED", "purged task %s, trying again: %s", f.Task.Short(), f.Why)
	}
	for _, h := range s.HostPurgeFailures {
		w.line("NOT DELETED", "by host %s: %s", h.Host, h.Why)
	}
	for i, o := range s.RefusedHosts {
		if i == refusedShown {
			w.line("", "and %d more (--json lists them)", len(s.RefusedHosts)-i)
			break
		}
		w.line("REFUSED", "%s%s, %s, the last %s: %s", prefixed("host ", prefixed("", o.ID.Short()+" ")), "from "+o.Addr,
			Plural(o.Times, "announce", "announces"), ago(o.Last, w.now), o.Reason)
	}
}

// secrets writes the use of the cluster secrets, and the warnings about files with secrets.
func (w *statusWriter) secrets(s api.Status) {
	if len(s.Secrets) > 1 {
		for _, u := range s.Secrets {
			w.line("secret", "%s", secretLine(u, w.now))
		}
		if s.RenewingProofs {
			w.line("", "the signatures of stored tasks are renewed now: remove no secret before the end")
		}
	} else if len(s.Secrets) == 1 {
		w.line("secret", "%s", s.Secrets[0].Fingerprint)
	}
	for _, text := range s.Warnings {
		w.line("WARNING", "%s", text)
	}
}

// traffic writes the use of the cache and the bytes since the start.
func (w *statusWriter) traffic(s api.Status) {
	quota := "no quota"
	if s.Cache.Quota > 0 {
		quota = fmt.Sprintf("%d%% of %s", 100*s.Cache.Bytes/s.Cache.Quota, sizeOf(s.Cache.Quota))
	}
	w.line("cache", "%s in %s (%s)%s", sizeOf(s.Cache.Bytes), Plural(s.Cache.Tasks, "task", "tasks"), quota,
		prefixed(", ", s.Cache.Dir))
	r := s.Received
	w.line("received", "%s from peers, %s from supernodes, %s from origins%s", sizeOf(r.Peers), sizeOf(r.Seeds),
		sizeOf(r.Origin), share(s))
	if s.OnNode() {
		w.line("sent", "%s to other nodes, %s to local clients, of that %s from the cache", sizeOf(s.Sent),
			sizeOf(s.Served), sizeOf(r.Cache))
	} else {
		w.line("sent", "%s to nodes", sizeOf(s.Sent))
	}
	if text := limited(s.Limits); text != "" {
		w.line("limits", "%s", text)
	}
	if s.BadPieces > 0 {
		w.line("BAD", "%s not match the digest; the log names the senders",
			Plural(int(s.BadPieces), "piece did", "pieces did"))
	}
}

// downloads writes how many downloads ended, and those that run.
func (w *statusWriter) downloads(s api.Status) {
	w.outcomes("pulls", "succeeded", s.Pulls)
	w.outcomes("seeds", "fetched", s.Seeds)
	w.line("now", "%s, %s open", Plural(len(s.Running), "download runs", "downloads run"),
		Plural(s.Downloads, "task", "tasks"))
	for i, r := range s.Running {
		if i == runningShown {
			w.line("", "and %d more (--json lists them)", len(s.Running)-i)
			break
		}
		w.line("", "%s", running(r, s.OnNode()))
	}
}

func (w *statusWriter) outcomes(name, well string, o *api.Outcomes) {
	if o == nil {
		return
	}
	text := fmt.Sprintf("%d %s, %d refused, %d failed", o.OK, well, o.Refused, o.Failed)
	if o.Canceled > 0 {
		text += fmt.Sprintf(", %d canceled by the client", o.Canceled)
	}
	if !o.Last.IsZero() {
		text += ", the last " + ago(o.Last, w.now)
	}
	w.line(name, "%s", text)
	if f := o.Failure; f != nil {
		w.line("FAILED", "%s: %s", ago(f.At, w.now),
			strings.Join(strings.Fields(strings.TrimPrefix(f.Name+": "+f.Error, ": ")), " "))
	}
}

// secretLine tells how one of several cluster secrets is used.
func secretLine(u api.SecretStatus, now time.Time) string {
	state := "also accepted"
	if u.First {
		state = "the first, which this host uses"
	} else if u.Removed {
		state = "REMOVED"
	}
	text := fmt.Sprintf("%s %s: %s of others", u.Fingerprint, state, Plural(u.Connections, "connection", "connections"))
	if u.Last.IsZero() {
		return text + ", not used since the start"
	}
	return text + fmt.Sprintf(", last used %s by %s", ago(u.Last, now), u.Address)
}

// refusedShown bounds the refused hosts in the text.
const refusedShown = 5

// runningShown bounds the downloads in the text; after quietMin without a piece, the text marks a download.
const (
	runningShown = 10
	quietMin     = 5 * time.Second
)

// running describes one download.
func running(r api.RunningStatus, onNode bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s: ", prefixed("", r.Name+" "), r.ID.Short())
	switch {
	case r.Length < 0:
		b.WriteString("its length is unknown yet")
	case r.Length > 0:
		fmt.Fprintf(&b, "%d%% of %s", 100*r.Have/r.Length, sizeOf(r.Length))
	}
	// A supernode fetches from origins by design.
	if all := r.Received.Peers + r.Received.Seeds + r.Received.Origin; all > 0 && onNode {
		fmt.Fprintf(&b, ", %d%% of it from the cluster", 100*(r.Received.Peers+r.Received.Seeds)/all)
	}
	if quiet := time.Duration(r.Quiet * float64(time.Second)); quiet >= quietMin {
		fmt.Fprintf(&b, ", NO PIECE for %s", quiet.Round(time.Second))
	}
	return strings.TrimSpace(b.String())
}

// ago returns the time since then as text.
func ago(then, now time.Time) string {
	d := max(0, now.Sub(then)) // the clock may have been set back
	if d >= time.Hour {
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s") + " ago"
	}
	return d.Truncate(time.Second).String() + " ago"
}

// limited lists the limits that are set.
func limited(l api.Limits) string {
	var words []string
	for _, one := range []struct {
		name string
		rate int64
	}{{"upload", l.Upload}, {"download", l.Download}, {"each task", l.Task}, {"origin", l.Origin}} {
		if one.rate > 0 {
			words = append(words, one.name+" "+config.Rate(one.rate).String())
		}
	}
	return strings.Join(words, ", ")
}

// Plural returns a number with its noun: one for 1, many for any other number.
func Plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// share returns the part of the received bytes that came from the cluster; empty for a supernode, which fetches from
// origins by design.
func share(s api.Status) string {
	r := s.Received
	all := r.Peers + r.Seeds + r.Origin
	if all == 0 || !s.OnNode() {
		return ""
	}
	return fmt.Sprintf(" (%d%% from the cluster)", 100*(r.Peers+r.Seeds)/all)
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
