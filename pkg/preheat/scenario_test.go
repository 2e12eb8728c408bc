package preheat

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

var begin = time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC)

// TestScenarios plays the scenarios in testdata. Run it with -rewrite to accept the present output. The commands:
//
//	job [kind=K] [waves=(5,25,100)] [min=P] [zones=(a,b)] [label=k=v] [count=N] [percent=P] [deadline=D] [unresolved]
//	host NAME.. [zone=Z] [label=k=v] [seed]             hosts that announce from now on, at each time that follows
//	report NAME.. STATE [bytes=N] [attempts=N] [error=TEXT] [digest=X]
//	silent NAME.. | leave NAME..                         they announce no longer; leave: they said so
//	pause | resume | cancel | resolve
//	plan [quiet]                                         what follows; the leader puts it into the record
//	gate | order NAME
//
// Every command takes at=DURATION since the beginning; without it no time passes.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &scene{now: begin, silent: map[string]bool{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return s.play(t, d) })
	})
}

type scene struct {
	now    time.Time
	record Record
	hosts  []Host
	silent map[string]bool
}

// names are the arguments of a command without values that name hosts.
func names(d *datadriven.TestData) (list []string) {
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 && a.Key == strings.ToLower(a.Key) && strings.ContainsAny(a.Key, "0123456789") {
			list = append(list, a.Key)
		}
	}
	return list
}

func (s *scene) find(t *testing.T, name string) *Host {
	i := slices.IndexFunc(s.hosts, func(h Host) bool { return h.Name == name })
	require.GreaterOrEqual(t, i, 0, "no host %s", name)
	return &s.hosts[i]
}

func (s *scene) play(t *testing.T, d *datadriven.TestData) string {
	var text string
	duration := func(name string) time.Duration {
		text = ""
		d.MaybeScanArgs(t, name, &text)
		if text == "" {
			return 0
		}
		v, err := time.ParseDuration(text)
		require.NoError(t, err)
		return v
	}
	if at := duration("at"); at > 0 {
		s.now = begin.Add(at)
	}
	for i := range s.hosts {
		if !s.silent[s.hosts[i].Name] {
			s.hosts[i].Seen = s.now
		}
	}
	labels := map[string]string{}
	text = ""
	if d.MaybeScanArgs(t, "label", &text); text != "" {
		k, v, _ := strings.Cut(text, ":")
		labels[k] = v
	}
	switch d.Cmd {
	case "job":
		spec := Spec{Kind: Image, Reference: "registry.test/app/web:1", Scope: Scope{Labels: labels}}
		if by := duration("deadline"); by > 0 {
			spec.Deadline = s.now.Add(by)
		}
		for _, a := range d.CmdArgs {
			switch a.Key {
			case "waves":
				for _, v := range a.Vals {
					var w float64
					_, err := fmt.Sscan(v, &w)
					require.NoError(t, err)
					spec.Waves = append(spec.Waves, w)
				}
			case "zones":
				spec.Scope.Zones = a.Vals
			case "kind":
				spec.Scope.Kind = ScopeKind(a.Vals[0])
			case "min":
				_, err := fmt.Sscan(a.Vals[0], &spec.Min)
				require.NoError(t, err)
			case "percent":
				_, err := fmt.Sscan(a.Vals[0], &spec.Scope.Percent)
				require.NoError(t, err)
			}
		}
		d.MaybeScanArgs(t, "count", &spec.Scope.Count)
		require.NoError(t, spec.Validate())
		s.record = New(strings.Repeat("5a", 16), spec, s.now)
		if d.HasArg("unresolved") {
			return ""
		}
		s.resolve()
	case "resolve":
		s.resolve()
	case "host":
		zone := ""
		d.MaybeScanArgs(t, "zone", &zone)
		for _, n := range names(d) {
			s.hosts = append(s.hosts, Host{Host: host.Host{ID: host.ID(n), Name: n, Addr: "10.0.0.1:65000", Zone: zone},
				Labels: labels, Seed: d.HasArg("seed"), Seen: s.now})
		}
	case "report":
		r := Report{Job: s.record.ID, Total: 300}
		if s.record.Resolved != nil {
			r.Digest = s.record.Resolved.Digest
		}
		if text = ""; d.HasArg("digest") {
			d.ScanArgs(t, "digest", &text)
			r.Digest = task.ID("sha256:" + strings.Repeat(text, 64))
		}
		for _, state := range []State{Pending, Running, Success, Failed} {
			if d.HasArg(string(state)) {
				r.State = state
			}
		}
		if r.State == Success {
			r.Bytes, r.Held = 300, []byte{3}
		}
		d.MaybeScanArgs(t, "bytes", &r.Bytes)
		d.MaybeScanArgs(t, "attempts", &r.Attempts)
		d.MaybeScanArgs(t, "error", &r.Error)
		for _, n := range names(d) {
			s.find(t, n).Report = &r
		}
	case "silent":
		for _, n := range names(d) {
			s.silent[n] = true
		}
	case "leave":
		for _, n := range names(d) {
			s.hosts = slices.DeleteFunc(s.hosts, func(h Host) bool { return h.Name == n })
		}
	case "pause", "resume":
		s.record.Control = Control{Rev: s.record.Control.Rev + 1, Paused: d.Cmd == "pause"}
	case "cancel":
		s.record.Cancelled = true
	case "plan":
		return s.plan(d.HasArg("quiet"))
	case "gate":
		return s.gate()
	case "order":
		for _, m := range s.record.Plan(s.now, s.hosts).Members {
			if m.Name == names(d)[0] {
				o, ok := s.record.Order(s.now, m)
				return fmt.Sprintf("run=%t rev=%d objects=%d owned=%t %t\n", o.Run, o.Rev, len(o.Objects), o.Owned, ok)
			}
		}
		return "none\n"
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
	return ""
}

func (s *scene) resolve() {
	digest := func(c string) task.ID { return task.ID("sha256:" + strings.Repeat(c, 64)) }
	s.record.Resolved = &Resolved{Digest: digest("a"), Objects: []Object{
		{ID: digest("a"), Kind: task.Manifest, Size: 100}, {ID: digest("b"), Kind: task.Blob, Size: 200}}}
}

// plan prints a plan and, as the leader of the job, puts it into the record.
func (s *scene) plan(quiet bool) string {
	p := s.record.Plan(s.now, s.hosts)
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d ready=%t wave=%d\n", p.Has, len(p.Members), p.Ready, p.Open)
	for _, m := range p.Members {
		if !quiet {
			fmt.Fprintf(&b, "%s zone=%s wave=%d run=%t %s %s\n", m.Name, m.Zone, m.Wave, m.Run, m.State, m.Why)
		}
	}
	s.record.Open = max(s.record.Open, p.Open)
	if p.End != nil {
		s.record.End = p.End
		fmt.Fprintf(&b, "end %s %s\n", p.End.State, p.End.Error)
	}
	return b.String()
}

func (s *scene) gate() string {
	g := s.record.Gate(s.now, s.record.Plan(s.now, s.hosts))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s ready=%t %d/%d %.1f%% of %g%% wave %d/%d bytes %d/%d left %gs %s\n",
		g.State, g.Outcome, g.Ready, g.Has, g.Of, g.Percent, g.Min, g.Wave, g.Waves, g.Bytes, g.Total, g.LeftSeconds, g.Error)
	for _, z := range g.Zones {
		fmt.Fprintf(&b, "zone %s %d/%d bytes %d/%d\n", z.Zone, z.Has, z.Of, z.Bytes, z.Total)
	}
	for _, o := range g.Objects {
		fmt.Fprintf(&b, "object %.8s on %d\n", o.ID, o.Hosts)
	}
	for _, h := range g.Hosts {
		fmt.Fprintf(&b, "%s %s %s\n", h.Host, h.State, h.Why)
	}
	return b.String()
}
