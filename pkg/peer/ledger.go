package peer

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// ErrRevoked tells that what was downloaded proved wrong at its end and was dropped.
var ErrRevoked = errors.New("the content proved wrong at its end and was dropped everywhere; ask again")

var (
	// errFacts tells that somebody vouches for a content of another length or layout.
	errFacts = errors.New("signed facts contradict the ones that are known")
	// errContradiction tells that what is here was vouched for wrongly: a run over the
	// checked whole says otherwise.
	errContradiction = errors.New("signed digests contradict what is here")
	// errSpace tells that the own disk, not the other side, is the trouble.
	errSpace = errors.New("piece store failed")
)

// ledger is what one download knows for sure of its content: facts, signed digests, and
// the replica that holds the pieces. The goroutines of all connections write into it
// directly, so that a digest is known before the next message of the same connection,
// maybe the piece itself, is read.
type ledger struct {
	id       task.ID
	store    piece.Store
	create   func(task.ID, piece.Facts) (piece.Replica, error)
	verifier Verifier
	// ready closes when the facts are known; replica and cached are set before that and
	// never after.
	ready   chan struct{}
	replica piece.Replica
	cached  bool // everything was here at the beginning

	// mu is held to look up and to add, over a journal append but never over a hash.
	mu      sync.Mutex
	digests []piece.Digest
	known   piece.Bitmap
	runs    []piece.Run
	found   map[runName]int
	runOf   []int32 // the run that vouches for a piece
	certs   map[piece.KeyID][]byte
	revoked map[uint64]bool
}

// runName tells runs apart: nobody signs two runs of the same name.
type runName struct {
	key          piece.KeyID
	epoch        uint64
	first, count int
	final        bool
}

func nameOf(r piece.Run) runName {
	return runName{r.Key, r.Epoch, int(r.First), len(r.Digests), r.Final}
}

// newLedger returns a ledger that knows nothing yet and believes nothing of what was revoked.
func newLedger(id task.ID, store piece.Store, v Verifier, revoked []piece.Revocation) *ledger {
	l := &ledger{
		id: id, store: store, create: store.Create, verifier: v, ready: make(chan struct{}), found: make(map[runName]int),
		certs: make(map[piece.KeyID][]byte), revoked: make(map[uint64]bool),
	}
	for _, r := range revoked {
		l.revoked[r.Epoch] = true
	}
	return l
}

// load takes up what the store holds of the task, if anything. What contradicts itself it
// drops.
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
	if err := l.loadLocked(r); err != nil {
		r.Close()
		l.replica, l.digests, l.known, l.runs, l.runOf = nil, nil, piece.Bitmap{}, nil, nil
		clear(l.found)
		if err := l.store.Remove(l.id); err != nil {
			return fmt.Errorf("dropping task %s: %w", l.id, err)
		}
		return nil
	}
	l.cached = r.Have().Full()
	close(l.ready)
	return nil
}

// loadLocked takes up what a replica holds; it fails with errContradiction only.
func (l *ledger) loadLocked(r piece.Replica) error {
	l.adopt(r)
	// What the own disk says is verified like what a stranger says: the cluster secret
	// may have changed since. What cannot be verified any more is left out.
	runs, certs := r.Runs()
	for _, der := range certs {
		_, _ = l.addLocked(nil, [][]byte{der}, false)
	}
	// One run over everything makes the others superfluous.
	if at := slices.IndexFunc(runs, l.isWhole); at >= 0 {
		if _, err := l.addLocked(runs[at:at+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
		if l.known.Full() {
			runs = nil
		}
	}
	for i := range runs {
		if _, err := l.addLocked(runs[i:i+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
	}
	return nil
}

func (l *ledger) adopt(r piece.Replica) {
	n := r.Facts().Layout().Count()
	l.replica = r
	l.digests = make([]piece.Digest, n)
	l.known = piece.NewBitmap(n)
	l.runOf = make([]int32, n)
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
	if f.Length == 0 {
		// Nothing is complete as soon as it is known: it is checked before.
		if err := checkWhole(task.Spec{ID: l.id}, nil); err != nil {
			return fmt.Errorf("%w: %w", errFacts, err)
		}
	}
	r, err := l.create(l.id, f)
	if err != nil {
		return fmt.Errorf("%w: making room for task %s of %d bytes: %w", errSpace, l.id, f.Length, err)
	}
	l.adopt(r)
	close(l.ready)
	return nil
}

// hasFacts reports whether the facts are known.
func (l *ledger) hasFacts() bool {
	select {
	case <-l.ready:
		return true
	default:
		return false
	}
}

// staleError tells that somebody still believes what was revoked.
type staleError struct{ epoch uint64 }

func (e *staleError) Error() string { return fmt.Sprintf("epoch %d was revoked", e.epoch) }

// add verifies runs and keeps what is new. It returns the numbers of the runs it keeps
// or kept before, so that they need not be sent back to where they came from. A
// *staleError is harmless: what was revoked is left out.
func (l *ledger) add(runs []piece.Run, certs [][]byte) (numbers []int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addLocked(runs, certs, true)
}

func (l *ledger) addLocked(runs []piece.Run, certs [][]byte, keep bool) (numbers []int, err error) {
	var fresh []piece.Run
	var freshCerts [][]byte
	var stale staleError
	defer func() {
		// What is good is kept, also when what came with it is not.
		if keep && l.replica != nil && len(fresh)+len(freshCerts) > 0 {
			if failed := l.replica.AddRuns(fresh, freshCerts); failed != nil {
				err = errors.Join(err, fmt.Errorf("%w: keeping digests of task %s: %w", errSpace, l.id, failed))
			}
		}
	}()
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
		if n, ok := l.found[nameOf(r)]; ok {
			numbers = append(numbers, n)
			continue
		}
		if l.revoked[r.Epoch] {
			stale.epoch = r.Epoch
			continue
		}
		if err := r.Check(); err != nil {
			return numbers, err
		}
		if err := l.verifier.VerifyRun(l.id, r); err != nil {
			return numbers, fmt.Errorf("run of pieces [%d, %d): %w", r.First, r.End(), err)
		}
		if err := l.setFactsLocked(r.Facts); err != nil {
			if errors.Is(err, errFacts) && l.replica != nil && !slices.ContainsFunc(l.runs, func(o piece.Run) bool { return o.Epoch >= r.Epoch }) {
				// The newer attempt was begun because of what was wrong with the older.
				err = fmt.Errorf("%w: %w", errContradiction, err)
			}
			return numbers, err
		}
		n, err := l.note(r)
		if err != nil {
			return numbers, err
		}
		numbers = append(numbers, n)
		fresh = append(fresh, r)
	}
	if stale.epoch != 0 {
		return numbers, &stale
	}
	return numbers, nil
}

// note enters a run that is known to be good. It fails when the run shows that something
// here is not: it is over the checked whole and says otherwise than an earlier one did, or
// a piece is stored that nobody had vouched for yet and whose bytes are others.
func (l *ledger) note(r piece.Run) (int, error) {
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		switch stored, ok := l.replica.Digest(i); {
		case l.known.Has(i) && l.digests[i] != d && r.Final, !l.known.Has(i) && ok && stored != d:
			return 0, fmt.Errorf("%w: piece %d of task %s", errContradiction, i, l.id)
		}
	}
	n := len(l.runs)
	l.runs = append(l.runs, r)
	l.found[nameOf(r)] = n
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		if l.known.Set(i) {
			l.digests[i], l.runOf[i] = d, int32(n)
		}
	}
	return n, nil
}

// isWhole reports whether a run vouches for every piece, checked as a whole.
func (l *ledger) isWhole(r piece.Run) bool {
	return r.Final && r.First == 0 && int(r.End()) == l.known.Len()
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

// concerns reports whether anything here was vouched for in that epoch; nothing of it is
// believed any more.
func (l *ledger) concerns(epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked[epoch] = true
	return slices.ContainsFunc(l.runs, func(r piece.Run) bool { return r.Epoch == epoch })
}

// epochs are all attempts that anything here was vouched for in.
func (l *ledger) epochs() (list []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if !slices.Contains(list, r.Epoch) {
			list = append(list, r.Epoch)
		}
	}
	return list
}

// certificate is that of a coordinator's key, nil when nobody has shown it.
func (l *ledger) certificate(key piece.KeyID) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.certs[key]
}

// size is about how many bytes run n has on the wire.
func (l *ledger) size(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 160 + len(l.runs[n].Digests)*len(piece.Digest{})
}
