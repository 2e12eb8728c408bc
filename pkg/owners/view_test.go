package owners

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/rendezvous"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// TestScenarios plays the scenarios in testdata. Run it with -rewrite to accept the present output.
// The commands:
//
//	new [owners=(A,B)] [standbys=(S,T)] [self=H] [nolastresort]   a view; Patience is 4 s, Budget 1 s
//	replied A [owners=(A,B)] [standbys=(S,T)] [early=(S,T)]   an announce was answered
//	failed A [cause=refusal|clock]              an announce failed; without a cause by silence
//	refused A                                   a lookup's connection was refused
//	waited                                      a request was answered by no owner for its whole Patience
//	owners                                      the state of each owner, and who leads
//	route first=(A,B)                           which owners a request asks about a task whose order begins so
//	answering first=(A,B)                       the owners of that task that answer
//	knew                                        whether the host knew owners before
//	doubted first=(A,B)                         those that fell silent a moment ago
//
// Every command takes at=DURATION since the beginning; without it no time passes.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		v, now := New(Config{}), begin
		var all []string
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
				cfg := Config{LastResort: !d.HasArg("nolastresort"), Owners: list(d, "owners"),
					Standbys: list(d, "standbys"),
					Patience: 4 * time.Second, Budget: time.Second}
				d.MaybeScanArgs(t, "self", &cfg.Self)
				v, now, all = New(cfg), begin, append(cfg.Owners, cfg.Standbys...)
				return ""
			case "replied":
				r := Replied{From: d.CmdArgs[0].Key, Owners: list(d, "owners"), Standbys: list(d, "standbys")}
				r.Early = list(d, "early")
				all = append(append(append(all, r.Owners...), r.Standbys...), r.Early...)
				return changes(v.Apply(now, r))
			case "failed":
				cause := "silence"
				d.MaybeScanArgs(t, "cause", &cause)
				f := Failed{From: d.CmdArgs[0].Key, Cause: map[string]Cause{"refusal": Refusal, "clock": Clock}[cause],
					Err: errors.New(cause)}
				return changes(v.Apply(now, f))
			case "refused":
				return changes(v.Apply(now, Refused{From: d.CmdArgs[0].Key, Cause: Refusal,
					Err: errors.New("refusal")}))
			case "waited":
				return changes(v.Apply(now, NoneAnswered{}))
			case "knew":
				return fmt.Sprintln(v.KnewOwners(now))
			case "owners":
				return states(v, now)
			case "route":
				return names(v.Route(now, key(t, all, list(d, "first"))))
			case "answering":
				return names(v.Answering(key(t, all, list(d, "first"))))
			case "doubted":
				return names(v.Doubted(now, key(t, all, list(d, "first"))))
			}
			d.Fatalf(t, "unknown command %q", d.Cmd)
			return ""
		})
	})
}

func names(addrs []string) string {
	if len(addrs) == 0 {
		return "nobody\n"
	}
	return strings.Join(addrs, " ") + "\n"
}

func list(d *datadriven.TestData, name string) (out []string) {
	for _, a := range d.CmdArgs {
		if a.Key == name {
			out = append(out, a.Vals...)
		}
	}
	return out
}

// key returns a task whose rendezvous order of all addresses begins as wanted.
func key(t *testing.T, all, first []string) string {
	all = slices.Compact(slices.Sorted(slices.Values(all)))
	for i := range 100_000 {
		key := fmt.Sprintf("sha256:%064x", i)
		if slices.Equal(rendezvous.Order(key, all)[:len(first)], first) {
			return key
		}
	}
	t.Fatalf("no task's order of %v begins with %v", all, first)
	return ""
}

// changes are Changes in words, one a line.
func changes(c Changes) string {
	var b strings.Builder
	say := func(ok bool, format string, args ...any) {
		if ok {
			fmt.Fprintf(&b, format+"\n", args...)
		}
	}
	say(c.Suspected, "suspected")
	say(c.Died, "dead: the others need the inventory")
	say(c.Outage > 0, "back after %s", c.Outage)
	say(c.Called, "standbys lead")
	say(len(c.Left) > 0, "left: %s", strings.Join(c.Left, " "))
	say(len(c.Joined) > 0, "joined: %s", strings.Join(c.Joined, " "))
	say(c.Standbys != nil, "new standbys: %s", strings.Join(c.Standbys, " "))
	say(c.Retry > 0, "again in %s", c.Retry)
	if b.Len() == 0 {
		return "nothing changes\n"
	}
	return b.String()
}

func states(v *View, now time.Time) string {
	var b strings.Builder
	for _, o := range v.Owners(now) {
		fmt.Fprintf(&b, "%s %s", o.Addr, o.State)
		if o.Standby {
			b.WriteString(", standby")
		}
		if o.Err != nil {
			fmt.Fprintf(&b, ": %v", o.Err)
		}
		b.WriteString("\n")
	}
	lead := map[Lead]string{OwnersLead: "owners", StandbysLead: "standbys"}[v.Lead()]
	fmt.Fprintf(&b, "%s lead, patience %s, budget %s\n", lead, v.Patience(), v.Budget(now))
	return b.String()
}

func TestEventOfFormerOwner(t *testing.T) {
	v := New(Config{Owners: []string{"a"}})
	assert.Equal(t, Changes{Retry: RetryMin}, v.Apply(begin, Failed{From: "gone"}))
	assert.Zero(t, v.Apply(begin, Replied{From: "gone", Owners: []string{"evil"}}))
	assert.Zero(t, v.Apply(begin, Refused{From: "gone"}))
	assert.Equal(t, []string{"a"}, v.Members())
}

func TestMet(t *testing.T) {
	v := New(Config{Owners: []string{"a", "b", "c"}})
	v.Apply(begin, Replied{From: "a"})
	v.Apply(begin, Replied{From: "b"})
	v.Apply(begin, Failed{From: "b"})
	assert.Equal(t, []string{"a", "b"}, v.Met(), "an owner that fails now may still know this host")
}

func TestSelf(t *testing.T) {
	v := New(Config{Self: "me", LastResort: true, Owners: []string{"a", "me"}, Standbys: []string{"s"},
		Patience: time.Second})
	assert.Equal(t, []string{"a"}, v.Members(), "a host sends nothing to itself")
	assert.ElementsMatch(t, []string{"a", "me"}, v.Order("task"))
	v.Apply(begin, Failed{From: "a", Cause: Refusal})
	assert.Equal(t, []string{"me"}, v.Route(begin, "task"))
	assert.False(t, v.Apply(begin, NoneAnswered{}).Called, "an owner calls no standbys: it leads")
}
