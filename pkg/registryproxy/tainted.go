package registryproxy

import (
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

const (
	// taintedLife is how long a client may come back with the beginning of a blob whose bytes proved wrong: dockerd tries
	// for some 75 s, other clients for less. A longer time sends some bytes twice.
	taintedLife = 10 * time.Minute
	// taintedMax bounds the remembered blobs.
	taintedMax = 1024
)

// tainted remembers blobs whose bytes proved wrong after some of them were sent.
type tainted struct {
	// mu is held to look up and change.
	mu    sync.Mutex
	until map[task.ID]time.Time
}

func (t *tainted) put(id task.ID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for old, until := range t.until {
		if !now.Before(until) || len(t.until) >= taintedMax {
			delete(t.until, old)
		}
	}
	if t.until == nil {
		t.until = map[task.ID]time.Time{}
	}
	t.until[id] = now.Add(taintedLife)
}

func (t *tainted) has(id task.ID, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Before(t.until[id])
}

// isReplaced reports whether a client may hold the beginning of a blob from other bytes than those that come now. Both
// have the digest as their ETag, so that the client's If-Range cannot tell them apart. The mirror then ignores the
// Range, which a server may do at any time (RFC 9110 §14.2): after a 200 with the whole blob, a client starts again.
func (req *request) isReplaced(id task.ID) bool {
	return req.tainted.has(id, time.Now()) || req.cfg.Replaced(id)
}
