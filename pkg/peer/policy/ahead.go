package policy

import (
	"time"

	"github.com/darter-io/darter/pkg/piece"
)

const (
	// lateAfter is how long a reader may wait for a stream that comes towards its window. Less multiplies
	// requests to fast registries, more keeps readers waiting.
	lateAfter = 2 * time.Second
	// AheadMost is how many further GETs of one blob a seed runs at once. More share the same line.
	AheadMost = 4
	// aheadFirst is how many more bring the first piece of one window each, whose client has waited for its first
	// byte for firstAfter: containerd gives up after 30 s without a header.
	aheadFirst = 4
	firstAfter = 5 * time.Second
)

// Span is a run of pieces: [First, End).
type Span struct{ First, End piece.Index }

// Window is what a reader waits for, here or on another host.
type Window struct {
	Span
	// Tail says that the reader takes the last piece before the whole is checked: it compares what it gets
	// by itself.
	Tail bool
	// Begins says that the reader has got nothing yet, Waited since when.
	Begins bool
	Waited time.Duration
}

// AheadView is what [Ahead] sees.
type AheadView struct {
	PieceSize int64
	// Have are the stored pieces. Last says that the last piece came, though it is not stored yet.
	Have piece.Bitmap
	Last bool
	// Rate of the stream in bytes per second, 0 while it is unknown.
	Rate float64
	// Stream is the piece that the stream brings next; it goes on to the end, past what Fetches bring, and then
	// returns to what is missing before.
	Stream piece.Index
	// Fetches are the further GETs, each from the piece that it brings next.
	Fetches []Span
	// Windows, the one that has waited longest first.
	Windows []Window
}

// Ahead decides which pieces a seed asks the origin for by a further GET, because its stream reaches a window
// of a reader too late. Each piece is asked for once: the stream leaves out what a further GET brings, and one
// inside another's span ends that span. The last piece completes the blob, so it comes ahead only to a
// reader that checks what it gets.
func Ahead(v AheadView) (s Span, ok bool) {
	last := piece.Index(v.Have.Len()) - 1
	if v.Rate <= 0 || len(v.Fetches) >= AheadMost {
		return v.first()
	}
	for _, w := range v.Windows {
		i := v.Have.NextMissing(w.First)
		if i == last && (!w.Tail || v.Last) || i >= w.End || i > last || !v.late(i) {
			continue
		}
		if i == last {
			return Span{i, i + 1}, true
		}
		end := min(w.End, last)
		for j := i; j < end; j++ {
			if v.Have.Has(j) || v.begins(j) && j > i {
				end = j
			}
		}
		return Span{i, end}, true
	}
	return s, false
}

// first decides which window's first piece comes by a GET of its own while the others are busy.
func (v AheadView) first() (s Span, ok bool) {
	if v.Rate <= 0 || len(v.Fetches) >= AheadMost+aheadFirst {
		return s, false
	}
	last := piece.Index(v.Have.Len()) - 1
	for _, w := range v.Windows {
		if w.Begins && w.Waited > firstAfter && w.First < last && !v.Have.Has(w.First) && v.late(w.First) {
			return Span{w.First, w.First + 1}, true
		}
	}
	return s, false
}

// late reports whether the GET that comes towards a missing piece is further away than a reader should wait.
func (v AheadView) late(i piece.Index) bool {
	from, wraps := v.Stream, v.Stream > i
	for _, f := range v.Fetches {
		if f.First <= i && i < f.End {
			from, wraps = f.First, false
		}
	}
	missing := 0
	count := func(from, to piece.Index) {
		for j := from; j < to; j++ {
			if !v.Have.Has(j) {
				missing++
			}
		}
	}
	if wraps {
		count(from, piece.Index(v.Have.Len()))
		from = 0
	}
	count(from, i)
	return float64(missing)*float64(v.PieceSize) > v.Rate*lateAfter.Seconds()
}

// begins reports whether a further GET brings piece i next.
func (v AheadView) begins(i piece.Index) bool {
	for _, f := range v.Fetches {
		if f.First == i && f.End > i {
			return true
		}
	}
	return false
}
