package httporigin

import (
	"fmt"
	"testing"
)

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{
		"bytes 0-0/1", "bytes 5-9/*", "bytes 9-5/10", "bytes */10", "bytes 0-18446744073709551616/1",
		"Bytes 1-2/3", "bytes +1-2/3", "bytes -1-2/3", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err != nil {
			return
		}
		if r.start < 0 || r.end < r.start || (r.total >= 0 && r.end >= r.total) {
			t.Fatalf("%q gave the impossible %+v", s, r)
		}
		total := "*"
		if r.total >= 0 {
			total = fmt.Sprint(r.total)
		}
		again, err := parseContentRange(fmt.Sprintf("bytes %d-%d/%s", r.start, r.end, total))
		if err != nil || again != r {
			t.Fatalf("%q is %+v, but parses after formatting as %+v, %v", s, r, again, err)
		}
	})
}
