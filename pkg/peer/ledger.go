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
	// errMetadata tells that somebody vouches for a content of another length or layout.
	errMetadata = errors.New("signed facts contradict the ones that are known")
	// errContradiction tells that what is here was vouched for wrongly: a run over the
	// checked whole says otherwise.
	errContradiction = errors.New("signed digests contradict what is here")
	// errSpace tells that the own disk, not the other side, is the trouble.
	errSpace = errors.New("piece store failed")
)

// ledger is what one download knows for sure of its content: facts, signed digests, and
// the replica that holds the pieces. The goroutines of all connections write into it
// directly, so that a digest is known before the next message of the same connection,
// maybe the piece itself, is read. They decide under mu what is new, verify and store it
// without, and enter it under mu once more, where what has changed meanwhile is looked at again.
type ledger struct {
	id       task.ID
	store    piece.Store
	create   func(task.ID, piece.Metadata) (piece.Replica, error)
	verifier Verifier
	// ready closes when the facts are known; replica and cached are set before that and
	// never after.
	ready   chan struct{}
	replica piece.Replica
	cached  bool // everything was here at the beginning

	// making is held while the store makes the replica, which may evict other contents or wait
	// for them. Those that only look up do not need it.
	making sync.Mutex

	// mu is held to look up and to enter, never over a signature, a hash or a call of the store.
	mu      sync.Mutex
	layout  piece.Layout // the replica's
	digests []piece.Digest
	known   piece.Bitmap
	runs    []piece.DigestRun
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

func nameOf(r piece.DigestRun) runName {
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
	if err := l.takeUp(r); err != nil {
		r.Close()
		l.mu.Lock()
		l.replica, l.digests, l.known, l.runs, l.runOf = nil, nil, piece.Bitmap{}, nil, nil
		clear(l.found)
		l.mu.Unlock()
		if err := l.store.Remove(l.id); err != nil {
			return fmt.Errorf("dropping task %s: %w", l.id, err)
		}
		return nil
	}
	l.cached = r.Have().Full()
	close(l.ready)
	return nil
}

// takeUp takes up what a replica holds; it fails with errContradiction only.
func (l *ledger) takeUp(r piece.Replica) error {
	l.adopt(r)
	// What the own disk says is verified like what a stranger says: the cluster secret
	// may have changed since. What cannot be verified any more is left out.
	runs, certs := r.Runs()
	for _, der := range certs {
		_, _ = l.take(nil, [][]byte{der}, false)
	}
	// One run over everything makes the others superfluous.
	if at := slices.IndexFunc(runs, l.isWhole); at >= 0 {
		if _, err := l.take(runs[at:at+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
		if l.knowsAll() {
			runs = nil
		}
	}
	for i := range runs {
		if _, err := l.take(runs[i:i+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
	}
	return nil
}

func (l *ledger) adopt(r piece.Replica) {
	layout := r.Metadata().Layout()
	n := layout.Count()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replica, l.layout = r, layout
	l.digests = make([]piece.Digest, n)
	l.known = piece.NewBitmap(n)
	l.runOf = make([]int32, n)
}

// setMetadata takes facts from somebody who is trusted with them: the own origin, the owner, or a
// coordinator that signed them. The store may take its time to make room.
func (l *ledger) setMetadata(f piece.Metadata) error {
	if known, err := l.compare(f); known {
		return err
	}
	if err := f.Check(); err != nil {
		return err
	}
	if f.Length == 0 {
		// Nothing is complete as soon as it is known: it is checked before.
		if err := checkWhole(task.Spec{ID: l.id}, nil); err != nil {
			return fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	l.making.Lock()
	defer l.making.Unlock()
	if known, err := l.compare(f); known {
		return err
	}
	r, err := l.create(l.id, f)
	if err != nil {
		return fmt.Errorf("%w: making room for task %s of %d bytes: %w", errSpace, l.id, f.Length, err)
	}
	l.adopt(r)
	close(l.ready)
	return nil
}

// compare reports whether facts are known already, and whether these contradict them.
func (l *ledger) compare(f piece.Metadata) (known bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.replica == nil {
		return false, nil
	}
	if l.layout != f.Layout() {
		return true, fmt.Errorf("%w: length %d, was %d", errMetadata, f.Length, l.layout.Length)
	}
	return true, nil
}

// hasMetadata reports whether the facts are known.
func (l *ledger) hasMetadata() bool {
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
func (l *ledger) add(runs []piece.DigestRun, certs [][]byte) (numbers []int, err error) {
	return l.take(runs, certs, true)
}

// take is add, which keeps runs in the replica only where it is told to. What is good is kept,
// also when what came with it is not.
func (l *ledger) take(runs []piece.DigestRun, certs [][]byte, keep bool) (numbers []int, err error) {
	freshCerts, err := l.certify(certs)
	var good, fresh []piece.DigestRun
	var stale *staleError
	for _, r := range runs {
		if err != nil {
			break
		}
		var known bool
		switch known, err = l.judge(r, good); {
		case errors.As(err, &stale):
			err = nil
		case err == nil && known:
			good = append(good, r)
		case err == nil:
			good, fresh = append(good, r), append(fresh, r)
		}
	}
	// The disk comes first: what this host passes on must have its proof after a crash, too.
	if keep && l.hasMetadata() && len(fresh)+len(freshCerts) > 0 {
		// A replica that has everything loses nothing without them: a disk may have become read-only.
		if failed := l.replica.AddRuns(fresh, freshCerts); failed != nil && !l.replica.Have().Full() {
			err = errors.Join(err, fmt.Errorf("%w: keeping digests of task %s: %w", errSpace, l.id, failed))
		}
	}
	stored := l.unproven(fresh)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range good {
		n, ok := l.found[nameOf(r)]
		if !ok && l.revoked[r.Epoch] { // since it was judged
			stale = &staleError{r.Epoch}
			continue
		}
		if !ok {
			var wrong error
			if n, wrong = l.note(r, stored); wrong != nil {
				return numbers, errors.Join(wrong, err)
			}
		}
		numbers = append(numbers, n)
	}
	if err == nil && stale != nil {
		return numbers, stale
	}
	return numbers, err
}

// certify makes the keys of certificates known, and returns those certificates that are new here.
func (l *ledger) certify(certs [][]byte) (fresh [][]byte, err error) {
	for _, der := range certs {
		key, err := l.verifier.AddCertificate(der)
		if err != nil {
			return fresh, fmt.Errorf("certificate of a coordinator: %w", err)
		}
		l.mu.Lock()
		if l.certs[key] == nil {
			l.certs[key] = der
			fresh = append(fresh, der)
		}
		l.mu.Unlock()
	}
	return fresh, nil
}

// judge verifies a run and takes its facts, and reports whether it was known already; before
// are those that came with it and are good. The error is a *staleError where it was revoked.
func (l *ledger) judge(r piece.DigestRun, before []piece.DigestRun) (known bool, err error) {
	l.mu.Lock()
	_, known = l.found[nameOf(r)]
	revoked := l.revoked[r.Epoch]
	l.mu.Unlock()
	switch {
	case known:
		return true, nil
	case revoked:
		return false, &staleError{r.Epoch}
	}
	if err := r.Check(); err != nil {
		return false, err
	}
	if err := l.verifier.VerifyRun(l.id, r); err != nil {
		return false, fmt.Errorf("run of pieces [%d, %d): %w", r.First, r.End(), err)
	}
	if err := l.setMetadata(r.Metadata); err != nil {
		notOlder := func(o piece.DigestRun) bool { return o.Epoch >= r.Epoch }
		l.mu.Lock()
		newest := l.replica != nil && !slices.ContainsFunc(l.runs, notOlder)
		l.mu.Unlock()
		if errors.Is(err, errMetadata) && newest && !slices.ContainsFunc(before, notOlder) {
			// The newer attempt was begun because of what was wrong with the older.
			err = fmt.Errorf("%w: %w", errContradiction, err)
		}
		return false, err
	}
	return false, nil
}

// unproven returns the digests of pieces that are stored though nobody has vouched for them, of
// those that runs speak of.
func (l *ledger) unproven(runs []piece.DigestRun) map[piece.Index]piece.Digest {
	var doubtful []piece.Index
	l.mu.Lock()
	for _, r := range runs {
		for i := r.First; i < r.End(); i++ {
			if !l.known.Has(i) {
				doubtful = append(doubtful, i)
			}
		}
	}
	replica := l.replica
	l.mu.Unlock()
	var stored map[piece.Index]piece.Digest
	for _, i := range doubtful {
		d, ok := replica.Digest(i)
		if !ok {
			continue
		}
		if stored == nil {
			stored = make(map[piece.Index]piece.Digest)
		}
		stored[i] = d
	}
	return stored
}

// note enters a run that is known to be good. It fails when the run shows that something
// here is not: it is over the checked whole and says otherwise than an earlier one did, or
// a piece is stored that nobody had vouched for yet and whose bytes are others. The caller
// holds mu.
func (l *ledger) note(r piece.DigestRun, stored map[piece.Index]piece.Digest) (int, error) {
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		here, ok := stored[i]
		switch {
		case l.known.Has(i) && l.digests[i] != d && r.Final, !l.known.Has(i) && ok && here != d:
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
func (l *ledger) isWhole(r piece.DigestRun) bool {
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

// knowsAll reports whether the digest of every piece is known.
func (l *ledger) knowsAll() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known.Full()
}

// any reports whether there is a run at all.
func (l *ledger) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs) > 0
}

// message returns the runs with those numbers and the certificates of their keys, less
// those that the other side knows; those it is told now it knows from then on.
func (l *ledger) message(numbers []int, knows map[piece.KeyID]bool) (runs []piece.DigestRun, certs [][]byte) {
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
	return slices.ContainsFunc(l.runs, func(r piece.DigestRun) bool { return r.Epoch == epoch })
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
