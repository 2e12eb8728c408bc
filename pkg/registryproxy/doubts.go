package registryproxy

import (
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

const (
	// doubtLife is how long a client may come back with the beginning of a content that proved
	// wrong: dockerd tries for some 75 s, others for less. Longer sends some bytes twice.
	doubtLife = 10 * time.Minute
	// doubtsMax bounds the contents that are remembered so.
	doubtsMax = 1024
)

// doubts remembers contents whose bytes proved wrong after some of them were sent.
type doubts struct {
	// mu is held to look or to note.
	mu    sync.Mutex
	until map[task.ID]time.Time
}

func (d *doubts) note(id task.ID, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for old, until := range d.until {
		if !now.Before(until) || len(d.until) >= doubtsMax {
			delete(d.until, old)
		}
	}
	if d.until == nil {
		d.until = map[task.ID]time.Time{}
	}
	d.until[id] = now.Add(doubtLife)
}

func (d *doubts) has(id task.ID, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return now.Before(d.until[id])
}

// replaced reports whether a client may hold the beginning of a content from bytes that are not
// what comes now. The digest is its ETag whatever the bytes were, so the client's own If-Range
// cannot tell: the Range is passed over, which a server may do at any time (RFC 9110 §14.2), and the
// whole sent with a 200, on which a client begins again.
func (x *exchange) replaced(id task.ID) bool {
	return x.doubts.has(id, time.Now()) || x.cfg.Replaced(id)
}
