package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/assert"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// TestScenarios plays the texts in testdata. Run it with -rewrite to accept what the policy decides
// now. The commands:
//
//	new [origin] [seed] [neighbours=N]   a policy, of a host that can ask origins, or is there to serve
//	turn VIEW          one turn of the loop: what is decided. A decision to ask the origin is carried out
//	replied            the announce that is on its way has ended
//	assigned [seed] [leading] [elsewhere] | wanted | wants | got | lost
//	ended [done|unwanted|peers|failed]   the reading of the origin has ended
//	seed-refused | owner-refused [personal] [hopeful]   whether the download ends
//	state              what the policy remembers
//
// VIEW is the text of [View.Text], and held=BOOL, rank=N and outranked=BOOL; what is not named stays as it was in the
// command before. Every command takes at=DURATION since the beginning; else no time passes.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var s *scene
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				s = newScene(t, d)
				return ""
			}
			return s.play(t, d)
		})
	})
}

type scene struct {
	p    *Policy
	v    View
	now  time.Time
	held bool
	rank int
	// outranked is what View.Outranked reports.
	outranked bool
}

func newScene(t *testing.T, d *datadriven.TestData) *scene {
	cfg := Config{
		Neighbours: 16, ProgressInterval: time.Second, Linger: 10 * time.Second, Origin: d.HasArg("origin"),
		Seed: d.HasArg("seed"),
	}
	d.MaybeScanArgs(t, "neighbours", &cfg.Neighbours)
	s := &scene{p: New(cfg), now: begin, v: View{LastUse: begin}}
	s.v.Held = func() bool { return s.held }
	s.v.Rank = func() int { return s.rank }
	s.v.Outranked = func() bool { return s.outranked }
	return s
}

// see reads the arguments that describe a view.
func (s *scene) see(t *testing.T, d *datadriven.TestData) {
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			continue
		}
		val := a.Vals[0]
		number := func() int {
			n, err := strconv.Atoi(val)
			if err != nil {
				d.Fatalf(t, "%s: %v", a.Key, err)
			}
			return n
		}
		age := func() time.Time {
			d, err := time.ParseDuration(val)
			assert.NoError(t, err, a.Key)
			return s.now.Add(-d)
		}
		truth := val == "true"
		switch a.Key {
		case "at":
			since, err := time.ParseDuration(val)
			assert.NoError(t, err)
			s.now = begin.Add(since)
		case "interest":
			s.v.Interest = Interest(slices.Index([]string{"nothing", "ranges", "everything"}, val))
		case "phase":
			s.v.Phase = Phase(slices.Index([]string{"unknown", "partial", "complete"}, val))
		case "signed":
			s.v.Signed = truth
		case "cached":
			s.v.Cached = truth
		case "wants":
			s.v.Wants = truth
		case "hungry":
			s.v.Hungry = truth
		case "yielding":
			s.v.Yielding = truth
		case "waits":
			s.v.Waits = truth
		case "ownerfailed":
			s.v.OwnerFailed = truth
		case "held":
			s.held = truth
		case "outranked":
			s.outranked = truth
		case "ranges":
			s.v.Ranges = number()
		case "conns":
			s.v.Conns = number()
		case "hellos":
			s.v.Hellos = number()
		case "seeds":
			s.v.Seeds = number()
		case "dialing":
			s.v.Dialing = number()
		case "checking":
			s.v.Checking = number()
		case "rank":
			s.rank = number()
		case "lasthave":
			s.v.LastHave = age()
		case "lastpiece":
			s.v.LastPiece = age()
		case "lastuse":
			s.v.LastUse = age()
		default:
			d.Fatalf(t, "no such part of a view: %s", a.Key)
		}
	}
}

func (s *scene) play(t *testing.T, d *datadriven.TestData) string {
	s.see(t, d)
	switch d.Cmd {
	case "turn":
		return s.turn()
	case "replied":
		s.p.Replied()
	case "assigned":
		s.p.Assigned(s.now, s.v, d.HasArg("seed"), d.HasArg("leading"), d.HasArg("elsewhere"))
	case "wanted":
		s.p.Wanted(s.now)
	case "wants":
		s.p.WantsChanged()
	case "got":
		s.p.GotPiece()
	case "lost":
		s.p.LostPiece()
	case "ended":
		how := slices.Index([]string{"done", "unwanted", "peers", "failed"}, d.CmdArgs[0].Key)
		s.p.OriginEnded(s.now, OriginEnd(how))
	case "seed-refused":
		return fmt.Sprintf("gives up: %t", s.p.SeedRefused(s.v))
	case "owner-refused":
		hopeful := func() bool { return d.HasArg("hopeful") }
		return fmt.Sprintf("gives up: %t", s.p.OwnerRefused(s.v, d.HasArg("personal"), hopeful))
	case "state":
		until := s.p.Wake(s.now, s.now.Add(time.Minute), s.v.Phase)
		return fmt.Sprintf("origin %s and %s, announcing %t, wake in %s",
			s.p.Permission(), s.p.Reading(), s.p.Announcing(), until.Sub(s.now))
	default:
		d.Fatalf(t, "no such command")
	}
	return ""
}

// turn decides in the order in which the loop does.
func (s *scene) turn() string {
	var out []string
	switch step := s.p.Origin(s.now, s.v); step {
	case Ask:
		s.p.OriginBegun()
		out = append(out, "ask the origin")
	case Stop:
		out = append(out, "stop reading the origin")
	case Leave:
	}
	if a, ok := s.p.Announce(s.now, s.v); ok {
		out = append(out, a.String())
	}
	if s.p.GiveUp(s.now, s.v) {
		out = append(out, "give up")
	}
	if s.p.Over(s.now, s.v) {
		out = append(out, "over: nobody needs the download")
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, "\n")
}

// TestViewText reads the text of a view back, as a scenario would.
func TestViewText(t *testing.T) {
	v := View{
		Interest: Everything, Phase: Partial, Wants: true, Hungry: true, Ranges: 2, Conns: 5, Hellos: 4,
		Seeds: 1, Dialing: 3,
		OwnerFailed: true, LastHave: begin.Add(-time.Second), LastPiece: begin.Add(-2 * time.Second),
		LastUse: begin.Add(-time.Minute),
	}
	text := v.Text(begin)
	assert.Equal(t, "interest=everything phase=partial wants=true hungry=true ownerfailed=true"+
		" ranges=2 conns=5 hellos=4 seeds=1 dialing=3 lasthave=1s lastpiece=2s lastuse=1m0s", text)
	s := &scene{now: begin}
	d := &datadriven.TestData{Cmd: "turn"}
	for _, arg := range strings.Fields(text) {
		key, val, _ := strings.Cut(arg, "=")
		d.CmdArgs = append(d.CmdArgs, datadriven.CmdArg{Key: key, Vals: []string{val}})
	}
	s.see(t, d)
	assert.Equal(t, v, s.v)
}
