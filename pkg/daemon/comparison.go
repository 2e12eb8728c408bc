package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/task"
)

var (
	// errOtherBytes reports an origin that gives users different bytes under one strong ETag.
	errOtherBytes = errors.New("its origin gives different users different bytes under the same strong ETag")
	// errNoComparison reports an origin whose bytes cannot be compared, or differed within [comparisonLife].
	errNoComparison = errors.New("its origin's bytes for this client cannot be compared with those of others")
)

// comparison compares the origin's bytes for one client's headers with the bytes that other clients' requests fetched.
type comparison struct {
	spec task.Spec // the client's own
	// needed is false if an equal request's bytes were equal within [comparisonLife], or if no comparison is required.
	needed bool
	// lenient accepts the origin's "public" if it serves no ranges, because a request without credentials fetched the
	// bytes.
	lenient bool
	first   sharing.Window
	begin   []byte // the origin's bytes of the first window
	note    string // names task and request in [comparisons]
}

// Bounds on remembered comparisons.
const (
	comparisonsMax = 4096
	// comparisonLife is how long a result is valid. Later, the store may have evicted the file, and another client's
	// request may have fetched it again.
	comparisonLife = 10 * time.Minute
)

// comparisons remembers the results of comparisons, so that equal requests do not repeat them.
type comparisons struct {
	// mu is held to look up or to add one.
	mu   sync.Mutex
	made map[string]compared
}

// compared is the result of one comparison.
type compared struct {
	at    time.Time
	equal bool // false also if the origin serves no ranges
}

// result returns what a comparison with this note found; known is false if none is remembered.
func (c *comparisons) result(note string, now time.Time) (equal, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	made, ok := c.made[note]
	known = ok && now.Sub(made.at) < comparisonLife
	return known && made.equal, known
}

func (c *comparisons) add(note string, equal bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil || len(c.made) >= comparisonsMax {
		c.made = map[string]compared{}
	}
	c.made[note] = compared{at: now, equal: equal}
}

// beginComparison fetches the beginning of the file from the origin.
func (f *files) beginComparison(ctx context.Context, c *comparison) (err error) {
	if c.spec.Length <= 0 {
		return errors.New("its origin does not report its length beforehand")
	}
	c.first = sharing.Windows(c.spec.Length, false, rand.Int64N)[0]
	c.begin, err = f.window(ctx, c.spec, c.first)
	return err
}

// compare returns nil if the client may get the bytes of an open file: they are the origin's for this client too, as
// far as the comparison shows, or a lenient comparison was not possible. It remembers the result.
func (f *files) compare(ctx context.Context, c *comparison, h *held) error {
	if f.pulls.embedded() && !c.lenient && h.Own() {
		f.comparisons.add(c.note, true, f.now()) // this request alone fetched all of it
		return nil
	}
	err := f.compareWindows(ctx, c, h)
	switch {
	case err == nil || ctx.Err() != nil:
		return err
	case c.lenient && !errors.Is(err, errOtherBytes):
		return nil
	}
	f.comparisons.add(c.note, false, f.now())
	return err
}

// compareWindows returns nil if all windows are equal, and then remembers it. It leaves the tail of a large file that
// still arrives to h.last.
func (f *files) compareWindows(ctx context.Context, c *comparison, h *held) error {
	if c.begin == nil {
		if err := f.beginComparison(ctx, c); err != nil {
			return err
		}
	}
	if h.Metadata().Length != c.spec.Length {
		return errors.New("the length differs")
	}
	complete := h.Complete()
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range sharing.Windows(c.spec.Length, complete, rand.Int64N) {
		g.Go(func() error { return f.compareWindow(ctx, c, h.Content, w) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	tail, later := sharing.Tail(c.spec.Length, complete)
	if !later {
		f.comparisons.add(c.note, true, f.now())
		return nil
	}
	h.tail, h.last = tail, func(ctx context.Context) error {
		err := f.compareWindow(ctx, c, h.Content, tail)
		switch {
		case err == nil:
			f.comparisons.add(c.note, true, f.now())
		case c.lenient && ctx.Err() == nil && !errors.Is(err, errOtherBytes):
			return nil
		case ctx.Err() == nil:
			f.comparisons.add(c.note, false, f.now())
		}
		return err
	}
	return nil
}

// compareWindow fetches a window of the file from the origin and compares it with the bytes in the store.
func (f *files) compareWindow(ctx context.Context, c *comparison, content *peer.Content, w sharing.Window) (err error) {
	theirs := c.begin
	if w != c.first {
		if theirs, err = f.window(ctx, c.spec, w); err != nil {
			return err
		}
	}
	ours := make([]byte, w.Length)
	reader := content.NewReader(ctx, w.Offset, w.Length)
	defer reader.Close()
	if _, err := io.ReadFull(reader, ours); err != nil {
		return err
	}
	if !bytes.Equal(theirs, ours) {
		return errOtherBytes
	}
	return nil
}
