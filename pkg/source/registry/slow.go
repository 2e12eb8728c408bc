package registry

import (
	"errors"
	"io"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"
)

// slowFor is how long a URL whose body stood still, or crawled, comes after the upstream's others.
const slowFor = time.Minute

// slow remembers the URLs whose body stood still or crawled. The zero value is ready; safe for concurrent use.
type slow struct {
	// mu is held to look up and to note.
	mu    sync.Mutex
	until map[string]time.Time // by URL; those of the operator, so they are few
}

func (s *slow) note(base *url.URL, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	s.until[base.String()] = now.Add(slowFor)
}

// order returns the URLs in the operator's order, but slow ones last.
func (s *slow) order(bases []*url.URL, now time.Time) []*url.URL {
	if len(bases) < 2 {
		return bases
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	isSlow := func(b *url.URL) int {
		if now.Before(s.until[b.String()]) {
			return 1
		}
		return 0
	}
	out := slices.Clone(bases)
	slices.SortStableFunc(out, func(a, b *url.URL) int { return isSlow(a) - isSlow(b) })
	return out
}

// watch returns a body that notes its URL if it stands still or crawls: the rest then comes from the next URL.
func (s *slow) watch(body io.ReadCloser, base *url.URL) io.ReadCloser {
	return &slowBody{ReadCloser: body, note: func() { s.note(base, time.Now()) }}
}

type slowBody struct {
	io.ReadCloser
	note func()
}

func (b *slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		b.note()
	}
	return n, err
}
