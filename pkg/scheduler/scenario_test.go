package scheduler

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// TestScenarios plays the scenarios in testdata. Run it with -rewrite to accept the present output. The
// commands:
//
//	new [seed=N] [neighbours=N] [gateways=N] [links=N] [seedlinks=N]  a scheduler; the owner's host is "owner"
//	announce HOST [zone=Z] [life=N] [leaving] [woke]     an entry a line:
//	    TASK EVENT [have=N] [need=N] [token=T] [silent=A,B] [left=A,B] [seeds=A,B]
//	        (wants 4 and has a spec unless token=none)
//	leave HOST | tick | done TASK | stats
//	failed TASK [asker|request]                          its input is the cause
//	unable TASK                                          the owner's disk failed
//	links TASK                                           which hosts are linked
//
// Every command takes at=DURATION since the beginning; without it no time passes.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s, now := New(Config{Self: owner}), begin
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var at string
			if d.MaybeScanArgs(t, "at", &at) {
				since, err := time.ParseDuration(at)
				if err != nil {
					d.Fatalf(t, "at: %v", err)
				}
				now = begin.Add(since)
			}
			switch d.Cmd {
			case "new":
				cfg := Config{Self: owner}
				d.MaybeScanArgs(t, "seed", &cfg.Seed)
				d.MaybeScanArgs(t, "neighbours", &cfg.Neighbours)
				d.MaybeScanArgs(t, "gateways", &cfg.Gateways)
				d.MaybeScanArgs(t, "links", &cfg.LinksMax)
				d.MaybeScanArgs(t, "seedlinks", &cfg.SeedLinksMax)
				if d.HasArg("hearfirst") {
					cfg.HearFirst = 4 * time.Second
				}
				s = New(cfg)
				return ""
			case "announce":
				return playAnnounce(t, d, s, now)
			case "leave":
				return changes(s.Leave(now, host.ID(d.CmdArgs[0].Key)))
			case "tick":
				return changes(s.Tick(now))
			case "unable":
				s.Unable(now, task.ID(d.CmdArgs[0].Key))
				return ""
			case "failed":
				scope := OfRegistry
				if d.HasArg("asker") {
					scope = OfAsker
				} else if d.HasArg("request") {
					scope = OfRequest
				}
				s.Failed(now, task.ID(d.CmdArgs[0].Key), errors.New(strings.TrimSpace(d.Input)), nil, scope)
				return ""
			case "done":
				s.Done(task.ID(d.CmdArgs[0].Key), 9)
				return ""
			case "stats":
				return strings.ToLower(fmt.Sprintf("%+v\n", s.Stats()))
			case "links":
				return links(s, task.ID(d.CmdArgs[0].Key))
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	})
}

func playAnnounce(t *testing.T, d *datadriven.TestData, s *Scheduler, now time.Time) string {
	name := d.CmdArgs[0].Key
	r := Report{Host: host.Host{ID: host.ID(name), Addr: name + ":65002"}, Generation: 1, Leaving: d.HasArg("leaving"),
		Woke: d.HasArg("woke"), Joined: d.HasArg("joined")}
	d.MaybeScanArgs(t, "zone", &r.Host.Zone)
	d.MaybeScanArgs(t, "life", &r.Generation)
	for line := range strings.Lines(d.Input) {
		r.Entries = append(r.Entries, parseEntry(t, d, strings.Fields(line)))
	}
	answer, err := s.Announce(now, r)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	if answer.Unknown {
		fmt.Fprintf(&b, "%s is new here\n", name)
	}
	for i, a := range answer.Assignments {
		fmt.Fprintf(&b, "%s: %s\n", r.Entries[i].Task, assignment(a))
	}
	b.WriteString(seeds(answer.Seeds))
	fmt.Fprintf(&b, "again in %s\n", answer.Interval)
	return b.String()
}

func parseEntry(t *testing.T, d *datadriven.TestData, words []string) Entry {
	e := Entry{Task: task.ID(words[0]), Event: Event(words[1]), Need: 4}
	token := "t"
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		var err error
		switch k {
		case "have":
			_, err = fmt.Sscan(v, &e.Have)
		case "need":
			_, err = fmt.Sscan(v, &e.Need)
		case "token":
			token = v
		case "moved":
			e.Moved = true
		case "silent":
			for id := range strings.SplitSeq(v, ",") {
				e.Silent = append(e.Silent, host.ID(id))
			}
		case "seeds":
			for id := range strings.SplitSeq(v, ",") {
				e.Seeds = append(e.Seeds, host.ID(id))
			}
		case "left":
			for id := range strings.SplitSeq(v, ",") {
				e.Left = append(e.Left, host.ID(id))
			}
		default:
			err = fmt.Errorf("unknown word %q", k)
		}
		if err != nil {
			d.Fatalf(t, "%v: %v", words, err)
		}
	}
	if token != "none" {
		e.Spec = &task.Spec{ID: e.Task, Authorization: secret.String(token)}
	}
	return e
}

// assignment is an answer in words; the names of one reason are sorted, so that a scenario does not
// change with the order of random choices.
func assignment(a Assignment) string {
	var parts []string
	if a.Failure != nil {
		parts = append(parts, fmt.Sprintf("failed: %v", a.Failure))
	}
	if a.Seed {
		parts = append(parts, "go to the origin")
	}
	if a.Local {
		parts = append(parts, "stay in the zone")
	}
	for _, reason := range []Reason{ReasonSeed, ReasonHolder, ReasonGate, ReasonZone, ReasonRemote, ReasonFill} {
		var names []string
		for _, n := range a.Neighbours {
			if n.Reason == reason {
				names = append(names, string(n.ID))
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			parts = append(parts, fmt.Sprintf("%s (%s)", strings.Join(names, " "), reason))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func seeds(specs []task.Spec) string {
	var b strings.Builder
	for _, spec := range specs {
		fmt.Fprintf(&b, "the owner brings %s with token %s\n", spec.ID, spec.Authorization.Reveal())
	}
	return b.String()
}

func changes(c Changes) string {
	var b strings.Builder
	for _, id := range c.Gone {
		fmt.Fprintf(&b, "%s is gone\n", id)
	}
	b.WriteString(seeds(c.Seeds))
	if b.Len() == 0 {
		return "nothing changes\n"
	}
	return b.String()
}

func links(s *Scheduler, id task.ID) string {
	w := s.swarms[id]
	if w == nil {
		return "nobody\n"
	}
	var lines []string
	for h, m := range w.index {
		me := w.member(m)
		var names []string
		for _, other := range me.now().links {
			names = append(names, string(s.hosts[w.member(other).host].ID))
		}
		slices.Sort(names)
		stand := map[standing]string{wanting: "wants", holding: "holds"}[me.standing]
		line := fmt.Sprintf("%s %s it: %s", s.hosts[h].ID, stand, strings.Join(names, " "))
		lines = append(lines, strings.TrimSpace(line)+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
