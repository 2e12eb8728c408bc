package peer

import (
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// attemptMemory is how long the engine remembers that it dropped bytes of a task.
const attemptMemory = 10 * time.Minute

// Replaced reports whether readers of a task within the last ten minutes may have got other bytes than it
// has now: the bytes did not match the digest at the end, the signed digests of two attempts contradict
// each other, or the task was purged during its download. A client that holds the first part from then
// must not append to it.
func (e *Engine) Replaced(id task.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ok := e.attempts[id]
	return ok && (a.count > 0 || a.replaced || len(a.revoked) > 0) && time.Since(a.last) <= attemptMemory
}

// noteReplaced remembers that clients must not append to what they got of a task.
func (e *Engine) noteReplaced(id task.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(time.Now(), id)
	a.replaced = true
	e.attempts[id] = a
}

// attempt remembers that an origin's bytes were wrong, so that it is asked again only once in a while, and
// that the digests of those bytes are revoked.
type attempt struct {
	count   int
	last    time.Time
	revoked []piece.Revocation
	certs   map[piece.KeyID][]byte // of the keys that signed the revocations
	// replaced says that readers may have got other bytes; see Replaced.
	replaced bool
}

// failure is why this host, as a seed, gave a task up, for peers that come late.
type failure struct {
	words *api.Failure
	until time.Time
}

// failureMemory is how long a seed sends late peers the reason why it gave up, before it tries again for
// them.
const failureMemory = 2 * time.Second

// wrong counts that the origin's bytes did not match their digest, and reports whether this host may ask
// it once more.
func (e *Engine) wrong(now time.Time, id task.ID) (again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(now, id)
	a.count++
	e.attempts[id] = a
	return a.count < 2
}

// wasWrong reports whether this host read other bytes from the origin than the task's digest says, a moment ago.
func (e *Engine) wasWrong(id task.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	a, ok := e.attempts[id]
	return ok && a.count > 0 && time.Since(a.last) <= attemptMemory
}

// noteRevoked remembers a revocation: a neighbour that has not received it yet would send the same wrong
// digests to the next download, which then sends it the revocation.
func (e *Engine) noteRevoked(now time.Time, id task.ID, r piece.Revocation, cert []byte) {
	const revokedMax = 64
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempt(now, id)
	if !slices.ContainsFunc(a.revoked, func(o piece.Revocation) bool { return o.Epoch == r.Epoch }) &&
		len(a.revoked) < revokedMax {
		a.revoked = append(slices.Clip(a.revoked), r)
		if a.certs == nil {
			a.certs = make(map[piece.KeyID][]byte)
		}
		a.certs[r.Key] = cert
	}
	e.attempts[id] = a
}

// revocation returns the revocation of an epoch of a task, with the certificate of its key.
func (e *Engine) revocation(id task.ID, epoch uint64) (r piece.Revocation, cert []byte, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attempts[id]
	for _, r := range a.revoked {
		if r.Epoch == epoch {
			return r, a.certs[r.Key], true
		}
	}
	return r, nil, false
}

// newEpoch returns the number of a new attempt to fetch an object: the time in nanoseconds, or more if the last number
// was not lower.
func (e *Engine) newEpoch() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch = max(e.epoch+1, uint64(time.Now().UnixNano()))
	return e.epoch
}

// attempt returns what the engine remembers of a task's wrong bytes, as of now, and forgets old tasks.
// The caller holds mu.
func (e *Engine) attempt(now time.Time, id task.ID) attempt {
	for id, a := range e.attempts {
		if now.Sub(a.last) > attemptMemory {
			delete(e.attempts, id)
		}
	}
	a := e.attempts[id]
	a.last = now
	return a
}

const (
	// spreadFor is how long a seed remembers what it has sent of an object that no host requests at the moment. Otherwise
	// nodes that start one by one would each get "first" copies of their own. After a longer time those copies may be
	// gone, and a new host would starve first.
	spreadFor = 10 * time.Minute
	// spreadsMax bounds the objects with a remembered spread; each takes two bytes per piece.
	spreadsMax = 1024
)

// spreadPast is what a seed has sent of an object, and until when that counts.
type spreadPast struct {
	spread *picker.Spread
	pieces int
	until  time.Time
}

// keepSpread remembers what a download that ends has sent. The caller holds mu, and d's
// loop is over.
func (e *Engine) keepSpread(d *Download, now time.Time) {
	if d.serving.spread == nil || !d.isSeed() {
		return
	}
	if len(e.spreads) >= spreadsMax {
		for id, past := range e.spreads {
			if now.After(past.until) {
				delete(e.spreads, id)
			}
		}
	}
	if len(e.spreads) < spreadsMax {
		e.spreads[d.id] = spreadPast{d.serving.spread, d.pick.Have().Len(), now.Add(spreadFor)}
	}
}

// spreadOf returns what this host sent of an object lately, or an empty spread.
func (e *Engine) spreadOf(id task.ID, pieces int, now time.Time) *picker.Spread {
	e.mu.Lock()
	defer e.mu.Unlock()
	past, ok := e.spreads[id]
	delete(e.spreads, id)
	if !ok || past.pieces != pieces || now.After(past.until) {
		return picker.NewSpread(pieces, e.cfg.Copies)
	}
	return past.spread
}
