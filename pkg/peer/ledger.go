package peer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// ErrRevoked tells that what was downloaded proved wrong at its end and was dropped.
var ErrRevoked = errors.New("the content proved wrong at its end and was dropped everywhere; ask again")

// errFacts tells that somebody vouches for a content of another length or layout.
var errFacts = errors.New("signed facts contradict the ones that are known")

// ledger is what one download knows for sure of its content: facts, signed digests, and
// the replica that holds the pieces. The goroutines of all connections write into it
// directly, so that a digest is known before the next message of the same connection,
// maybe the piece itself, is read.
type ledger struct {
	id       task.ID
	store    piece.Store
	verifier Verifier
	// ready closes when the facts are known; replica is set before that and never after.
	ready   chan struct{}
	replica piece.Replica

	// mu is held to look up and to add, over a journal append but never over a hash.
	mu      sync.Mutex
	digests []piece.Digest
	known   piece.Bitmap
	runs    []piece.Run
	runOf   []int32 // the run that vouches for a piece
	certs   map[piece.KeyID][]byte
	revoked map[uint64]bool
}

func newLedger(id task.ID, store piece.Store, v Verifier) *ledger {
	return &ledger{
		id: id, store: store, verifier: v, ready: make(chan struct{}),
		certs: make(map[piece.KeyID][]byte), revoked: make(map[uint64]bool),
	}
}

// load takes up what the store holds of the task, if anything.
func (l *ledger) load() error {
	r, err := l.store.Open(l.id)
	if errors.Is(err, piece.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening task %s: %w", l.id, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.adopt(r)
	runs, certs := r.Runs()
	// What the own disk says is verified like what a stranger says: the cluster secret
	// may have changed since.
	_, _ = l.addLocked(runs, certs, false)
	return nil
}

func (l *ledger) adopt(r piece.Replica) {
	n := r.Facts().Layout().Count()
	l.replica = r
	l.digests = make([]piece.Digest, n)
	l.known = piece.NewBitmap(n)
	l.runOf = make([]int32, n)
	close(l.ready)
}

// setFacts takes facts from somebody who is trusted with them: the own origin, the owner.
func (l *ledger) setFacts(f piece.Facts) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.setFactsLocked(f)
}

func (l *ledger) setFactsLocked(f piece.Facts) error {
	if l.replica != nil {
		if l.replica.Facts().Layout() != f.Layout() {
			return fmt.Errorf("%w: length %d, was %d", errFacts, f.Length, l.replica.Facts().Length)
		}
		return nil
	}
	if err := f.Check(); err != nil {
		return err
	}
	r, err := l.store.Create(l.id, f)
	if err != nil {
		return fmt.Errorf("making room for task %s of %d bytes: %w", l.id, f.Length, err)
	}
	l.adopt(r)
	return nil
}

// known reports whether the facts are known.
func (l *ledger) hasFacts() bool {
	select {
	case <-l.ready:
		return true
	default:
		return false
	}
}

// add verifies runs and keeps what is new. It returns the numbers of the runs it keeps
// or kept before, so that they need not be sent back to where they came from.
func (l *ledger) add(runs []piece.Run, certs [][]byte) (numbers []int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addLocked(runs, certs, true)
}

func (l *ledger) addLocked(runs []piece.Run, certs [][]byte, keep bool) (numbers []int, err error) {
	var fresh []piece.Run
	var freshCerts [][]byte
	for _, der := range certs {
		key, err := l.verifier.AddCertificate(der)
		if err != nil {
			return numbers, fmt.Errorf("certificate of a coordinator: %w", err)
		}
		if l.certs[key] == nil {
			l.certs[key] = der
			freshCerts = append(freshCerts, der)
		}
	}
	for _, r := range runs {
		if n := l.find(r); n >= 0 {
			numbers = append(numbers, n)
			continue
		}
		if l.revoked[r.Epoch] {
			continue
		}
		if err := r.Check(); err != nil {
			return numbers, err
		}
		if err := l.verifier.VerifyRun(l.id, r); err != nil {
			return numbers, fmt.Errorf("run of pieces [%d, %d): %w", r.First, r.End(), err)
		}
		if err := l.setFactsLocked(r.Facts); err != nil {
			return numbers, err
		}
		numbers = append(numbers, l.note(r))
		fresh = append(fresh, r)
	}
	if keep && len(fresh)+len(freshCerts) > 0 {
		if l.replica == nil {
			return numbers, nil
		}
		if err := l.replica.AddRuns(fresh, freshCerts); err != nil {
			return numbers, fmt.Errorf("keeping digests of task %s: %w", l.id, err)
		}
	}
	return numbers, nil
}

// note enters a run that is known to be good.
func (l *ledger) note(r piece.Run) int {
	n := len(l.runs)
	l.runs = append(l.runs, r)
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		if l.known.Set(i) {
			l.digests[i], l.runOf[i] = d, int32(n)
		}
	}
	return n
}

func (l *ledger) find(r piece.Run) int {
	for n := len(l.runs) - 1; n >= 0; n-- {
		have := &l.runs[n]
		if have.First == r.First && have.Epoch == r.Epoch && len(have.Digests) == len(r.Digests) && have.Final == r.Final && have.Key == r.Key {
			return n
		}
	}
	return -1
}

// digest returns the digest that piece i must have.
func (l *ledger) digest(i piece.Index) (piece.Digest, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known.Has(i) {
		return piece.Digest{}, false
	}
	return l.digests[i], true
}

// span is which pieces run n vouches for, and with which key.
func (l *ledger) span(n int) (first, end piece.Index, key piece.KeyID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.runs[n]
	return r.First, r.End(), r.Key
}

// knownSet returns a copy of the set of pieces whose digest is known.
func (l *ledger) knownSet() piece.Bitmap {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known.Clone()
}

// proof returns the number of the run that vouches for piece i, or -1.
func (l *ledger) proof(i piece.Index) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known.Has(i) {
		return -1
	}
	return int(l.runOf[i])
}

// any reports whether there is a run at all.
func (l *ledger) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs) > 0
}

// message returns the runs with those numbers and the certificates of their keys, less
// those that the other side knows; those it is told now it knows from then on.
func (l *ledger) message(numbers []int, knows map[piece.KeyID]bool) (runs []piece.Run, certs [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range numbers {
		r := l.runs[n]
		runs = append(runs, r)
		if der := l.certs[r.Key]; der != nil && !knows[r.Key] {
			knows[r.Key] = true
			certs = append(certs, der)
		}
	}
	return runs, certs
}

// proven reports whether a coordinator has vouched for every piece.
func (l *ledger) proven() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replica != nil && l.known.Full() && (len(l.runs) > 0 || l.known.Len() == 0)
}

// concerns reports whether anything here was vouched for in that epoch.
func (l *ledger) concerns(epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked[epoch] = true
	for _, r := range l.runs {
		if r.Epoch == epoch {
			return true
		}
	}
	return false
}

// size is about how many bytes run n has on the wire.
func (l *ledger) size(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 160 + len(l.runs[n].Digests)*len(piece.Digest{})
}
