package picker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/darter-io/darter/pkg/piece"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// TestScenarios plays the scenarios in testdata. Run it with -rewrite to accept the present
// output of the picker. Neighbours have one letter, capital for a seed; pieces are drawn as #
// (there) and . (missing). The commands:
//
//	new [have=BITS] [want=BITS] [limit=N] [each=N] [seed=N]   a picker; its input is a neighbour a line: NAME BITS
//	next [n=N]                 the next N decisions; each is carried out
//	odds [sources]             how many of 4000 decisions would fall like that, to the nearest 5 %, none carried out
//	got FROM PIECE [bound]     the piece came, with bound as the answer to an any-request
//	bound FROM PIECE | refused FROM | failed FROM PIECE | busy FROM for=DURATION
//	join NAME BITS | leave NAME | has NAME PIECE | lacks NAME PIECE | lost PIECE | seed NAME
//	want BITS | urgent PIECE...
//	state                      what the picker knows
//
// Every command takes at=DURATION since the beginning; without it no time passes.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var s *scene
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				s = newScene(t, d)
				return ""
			}
			var at string
			if d.MaybeScanArgs(t, "at", &at) {
				since, err := time.ParseDuration(at)
				if err != nil {
					d.Fatalf(t, "at: %v", err)
				}
				s.now = begin.Add(since)
			}
			return s.play(t, d)
		})
	})
}

type scene struct {
	p     *Picker
	n     int
	names []string // by Neighbour
	now   time.Time
}

func bitsOf(text string) piece.Bitmap {
	b := piece.NewBitmap(len(text))
	for i, c := range text {
		if c == '#' {
			b.Set(piece.Index(i))
		}
	}
	return b
}

func drawn(b piece.Bitmap) string {
	var out strings.Builder
	for i := range piece.Index(b.Len()) {
		out.WriteByte(".#"[flag(b.Has(i))])
	}
	return out.String()
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func newScene(t *testing.T, d *datadriven.TestData) *scene {
	s := &scene{now: begin}
	var have, want string
	cfg := Config{Seed: 1}
	d.MaybeScanArgs(t, "have", &have)
	d.MaybeScanArgs(t, "want", &want)
	d.MaybeScanArgs(t, "limit", &cfg.RequestsMax)
	d.MaybeScanArgs(t, "each", &cfg.PerNeighbour)
	d.MaybeScanArgs(t, "seed", &cfg.Seed)
	lines := strings.Split(strings.TrimSpace(d.Input), "\n")
	s.n = len(strings.Fields(lines[0])[1])
	if have == "" {
		have = strings.Repeat(".", s.n)
	}
	if want == "" {
		want = strings.Repeat("#", s.n)
	}
	s.p = New(cfg, piece.Layout{Length: int64(s.n) * 10, PieceSize: 10}, bitsOf(have))
	s.p.Want(bitsOf(want))
	for _, line := range lines {
		f := strings.Fields(line)
		s.join(f[0], f[1])
	}
	return s
}

func (s *scene) join(name, bits string) {
	id := Neighbour(len(s.names))
	s.names = append(s.names, name)
	s.p.Join(id, name == strings.ToUpper(name))
	b := bitsOf(bits)
	for i := range piece.Index(b.Len()) {
		if b.Has(i) {
			s.p.Has(id, i)
		}
	}
}

func (s *scene) play(t *testing.T, d *datadriven.TestData) string {
	word := func(i int) string { return d.CmdArgs[i].Key }
	from := func() Neighbour {
		n := slices.Index(s.names, word(0))
		if n < 0 {
			d.Fatalf(t, "no neighbour %q", word(0))
		}
		return Neighbour(n)
	}
	number := func(i int) (index piece.Index) {
		if _, err := fmt.Sscan(word(i), &index); err != nil {
			d.Fatalf(t, "%v", err)
		}
		return index
	}
	switch d.Cmd {
	case "next":
		n := 1
		d.MaybeScanArgs(t, "n", &n)
		var out strings.Builder
		for range n {
			r, ok := s.p.Next(s.now)
			fmt.Fprintln(&out, s.describe(r, ok))
			if !ok {
				break
			}
			s.p.Requested(r)
		}
		return out.String()
	case "odds":
		return s.odds(d)
	case "got":
		if d.HasArg("bound") {
			s.p.Chosen(from(), number(1))
		}
		if d.HasArg("trip") {
			// The piece begins trip after its request, and takes the given time.
			var trip, takes string
			d.ScanArgs(t, "trip", &trip)
			d.ScanArgs(t, "takes", &takes)
			n := s.p.neighbours[from()]
			span := func(text string) time.Duration {
				v, err := time.ParseDuration(text)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				return v
			}
			at := n.asked(number(1))
			if at < 0 {
				d.Fatalf(t, "piece %d is not on its way: %s", number(1), s.state())
			}
			begun := n.requested[at].at.Add(span(trip))
			if s.now.Before(begun) {
				s.now = begun
			}
			s.now = s.now.Add(span(takes))
			s.p.Received(from(), number(1), begun, s.now)
		}
		s.p.Ended(from(), number(1))
		s.p.Stored(number(1))
	case "bound":
		s.p.Chosen(from(), number(1))
	case "refused":
		s.p.Refused(from())
	case "failed":
		s.p.Ended(from(), number(1))
	case "busy":
		var text string
		d.ScanArgs(t, "for", &text)
		wait, err := time.ParseDuration(text)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		s.p.Busy(from(), s.now.Add(wait))
	case "join":
		s.join(word(0), word(1))
	case "leave":
		s.p.Leave(from())
	case "has":
		s.p.Has(from(), number(1))
	case "lacks":
		s.p.Lacks(from(), number(1))
	case "lost":
		s.p.Lost(number(0))
	case "seed":
		s.p.SetSeed(from(), true)
	case "want":
		s.p.Want(bitsOf(word(0)))
	case "urgent":
		var list []piece.Index
		for i := range d.CmdArgs {
			list = append(list, number(i))
		}
		s.p.Urgent(list)
	case "state":
		return s.state()
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
	return ""
}

// describe returns a decision in words.
func (s *scene) describe(r Request, ok bool) string {
	if !ok {
		return "nothing"
	}
	name := s.names[r.From]
	if r.Any {
		text := fmt.Sprintf("ask %s for any piece", name)
		if len(r.Exclude) > 0 {
			text += fmt.Sprintf(" but %v", r.Exclude)
		}
		if r.SeedsOnly {
			text += ", seeds only"
		}
		return text
	}
	if n := s.p.avail[r.Piece]; r.Urgent {
		return fmt.Sprintf("ask %s for piece %d, urgent", name, r.Piece)
	} else {
		return fmt.Sprintf("ask %s for piece %d (held by %d of %d)", name, r.Piece, n, len(s.p.neighbours))
	}
}

func (s *scene) odds(d *datadriven.TestData) string {
	const n = 4000
	count := map[string]int{}
	for range n {
		r, ok := s.p.Next(s.now)
		what := s.describe(r, ok)
		if ok && d.HasArg("sources") {
			what = "ask " + s.names[r.From]
		}
		count[what]++
	}
	var lines []string
	for what, times := range count {
		lines = append(lines, fmt.Sprintf("%s: %d %%\n", what, (times*20+n/2)/n*5))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (s *scene) state() string {
	var out strings.Builder
	fmt.Fprintf(&out, "have     %s\nflying   %s\n", drawn(s.p.have), drawn(s.p.flying))
	fmt.Fprintf(&out, "on their way %d", s.p.Outstanding())
	if s.p.Starving() {
		out.WriteString(", starving")
	}
	if !s.p.Wants() {
		out.WriteString(", nothing wanted")
	}
	out.WriteString("\n")
	for _, id := range s.p.order {
		one := s.p.neighbours[id]
		fmt.Fprintf(&out, "%-8s %s", s.names[id], drawn(one.have))
		if len(one.requested) > 0 {
			var asked []piece.Index
			for _, f := range one.requested {
				asked = append(asked, f.piece)
			}
			fmt.Fprintf(&out, " asked for %v", asked)
		}
		if len(one.anys) > 0 {
			fmt.Fprintf(&out, " asked for any %d times", len(one.anys))
		}
		if one.busyUntil.After(s.now) {
			fmt.Fprintf(&out, " busy for %s", one.busyUntil.Sub(s.now))
		}
		out.WriteString("\n")
	}
	if free := s.p.NextFree(s.now); !free.IsZero() {
		fmt.Fprintf(&out, "next free in %s\n", free.Sub(s.now))
	}
	return out.String()
}
