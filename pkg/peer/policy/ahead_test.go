package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/darter-io/darter/pkg/piece"
)

// TestAheadScenarios plays the texts in testdata-ahead. Run it with -rewrite to accept the decisions of today. A
// command is
//
//	ahead have=###.... stream=N [rate=PIECES] [last] [fetches=N-M,…] [windows=N-M,N-Mt,N-Mb,…]
//
// with one character for each piece, stored or not, the rate in pieces per second, and spans as [N, M). A
// window with a t takes the last piece before the whole is checked; one with a b has waited for its first byte
// for ten seconds. Decisions are carried out: each line is
// one further GET, and those after it are decided with it under way.
func TestAheadScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata-ahead", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var have, fetches, windows string
			var stream int
			v := AheadView{PieceSize: 1000}
			d.ScanArgs(t, "have", &have)
			d.ScanArgs(t, "stream", &stream)
			d.MaybeScanArgs(t, "rate", &v.Rate)
			d.MaybeScanArgs(t, "fetches", &fetches)
			d.MaybeScanArgs(t, "windows", &windows)
			v.Rate *= 1000
			v.Last = d.HasArg("last")
			v.Stream = piece.Index(stream)
			v.Have = piece.NewBitmap(len(have))
			for i, c := range have {
				if c == '#' {
					v.Have.Set(piece.Index(i))
				}
			}
			for _, text := range strings.FieldsFunc(fetches, func(r rune) bool { return r == ',' }) {
				v.Fetches = append(v.Fetches, spanOf(t, text))
			}
			for _, text := range strings.FieldsFunc(windows, func(r rune) bool { return r == ',' }) {
				span, tail := strings.CutSuffix(text, "t")
				span, begins := strings.CutSuffix(span, "b")
				w := Window{Span: spanOf(t, span), Tail: tail, Begins: begins}
				if begins {
					w.Waited = 10 * time.Second
				}
				v.Windows = append(v.Windows, w)
			}
			var out strings.Builder
			for {
				s, ok := Ahead(v)
				if !ok {
					break
				}
				fmt.Fprintf(&out, "get %d-%d\n", s.First, s.End)
				for i := range v.Fetches {
					if f := &v.Fetches[i]; f.First < s.First && s.First < f.End {
						f.End = s.First
					}
				}
				v.Fetches = append(v.Fetches, s)
			}
			if out.Len() == 0 {
				return "nothing\n"
			}
			return out.String()
		})
	})
}

func spanOf(t *testing.T, text string) (s Span) {
	if _, err := fmt.Sscanf(text, "%d-%d", &s.First, &s.End); err != nil {
		t.Fatalf("no span: %q: %v", text, err)
	}
	return s
}
