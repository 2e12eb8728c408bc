package peer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// ErrRevoked means that the downloaded bytes did not match their digest at the end and were dropped.
var ErrRevoked = errors.New("the object did not match its digest at its end and was dropped everywhere; try again")

var (
	// errMetadata means that signed metadata has another length or piece size than is known.
	errMetadata = errors.New("signed metadata contradicts what is known")
	// errContradiction means that wrong digests were signed for what is stored: a run over the checked
	// whole says otherwise.
	errContradiction = errors.New("signed digests contradict what is here")
	// errSpace means that this host's disk failed, and not the other side.
	errSpace = errors.New("piece store failed")
)

// proof is what one download can prove of its object: metadata, signed digests, and the replica that holds the pieces.
// The goroutines of all connections write into it directly, so that a digest is known before the next message of the
// same connection, maybe the piece itself, is read. They find out under mu which runs are new, verify and store them
// without mu, and enter them under mu, where they check for changes that others made meanwhile.
type proof struct {
	id       task.ID
	store    piece.Store
	create   func(task.ID, piece.Metadata) (piece.Replica, error)
	verifier Verifier
	// ready closes when the metadata is known; replica and cached are set before that and never after.
	ready   chan struct{}
	replica piece.Replica
	cached  bool // everything was here at the beginning

	// making is held while the store makes the replica, which may evict other objects or wait
	// for them. Those that only look up do not need it.
	making sync.Mutex

	// mu is held to look up and to enter, never over a signature, a hash or a call of the store.
	mu      sync.Mutex
	layout  piece.Layout // the replica's
	digests []piece.Digest
	known   piece.Bitmap
	runs    []piece.DigestRun
	found   map[runName]int
	runOf   []int32 // the run that holds a piece's digest
	certs   map[piece.KeyID][]byte
	revoked map[uint64]bool
}

// runName names a run: no coordinator signs two runs of the same name.
type runName struct {
	key          piece.KeyID
	epoch        uint64
	first, count int
	final        bool
}

func nameOf(r piece.DigestRun) runName {
	return runName{r.Key, r.Epoch, int(r.First), len(r.Digests), r.Final}
}

// newProof returns an empty proof that rejects runs of the revoked epochs.
func newProof(id task.ID, store piece.Store, v Verifier, revoked []piece.Revocation) *proof {
	p := &proof{
		id: id, store: store, create: store.Create, verifier: v, ready: make(chan struct{}),
		found: make(map[runName]int),
		certs: make(map[piece.KeyID][]byte), revoked: make(map[uint64]bool),
	}
	for _, r := range revoked {
		p.revoked[r.Epoch] = true
	}
	return p
}

// load reads what the store holds of the task, if anything. It drops a replica that contradicts itself.
func (p *proof) load() error {
	r, err := p.store.Open(p.id)
	if errors.Is(err, piece.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening task %s: %w", p.id, err)
	}
	if err := p.takeUp(r); err != nil {
		r.Close()
		p.mu.Lock()
		p.replica, p.digests, p.known, p.runs, p.runOf = nil, nil, piece.Bitmap{}, nil, nil
		clear(p.found)
		p.mu.Unlock()
		if err := p.store.Remove(p.id); err != nil {
			return fmt.Errorf("dropping task %s: %w", p.id, err)
		}
		return nil
	}
	p.cached = r.Have().Full()
	close(p.ready)
	return nil
}

// takeUp enters the runs and pieces of a replica; it fails with errContradiction only.
func (p *proof) takeUp(r piece.Replica) error {
	p.adopt(r)
	// Runs from this host's disk are verified like those of others, because the cluster secret may have changed since.
	// Runs that cannot be verified any more are left out.
	runs, certs := r.Runs()
	for _, der := range certs {
		_, _ = p.take(nil, [][]byte{der}, false)
	}
	// One run over everything makes the others superfluous.
	if at := slices.IndexFunc(runs, p.isWhole); at >= 0 {
		if _, err := p.take(runs[at:at+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
		if p.knowsAll() {
			runs = nil
		}
	}
	for i := range runs {
		if _, err := p.take(runs[i:i+1], nil, false); errors.Is(err, errContradiction) {
			return err
		}
	}
	return nil
}

func (p *proof) adopt(r piece.Replica) {
	layout := r.Metadata().Layout()
	n := layout.Count()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replica, p.layout = r, layout
	p.digests = make([]piece.Digest, n)
	p.known = piece.NewBitmap(n)
	p.runOf = make([]int32, n)
}

// setMetadata takes metadata from a trusted source: this host's origin, the owner, or a
// coordinator that signed them. The store may take its time to make room.
func (p *proof) setMetadata(f piece.Metadata) error {
	if known, err := p.compare(f); known {
		return err
	}
	if err := f.Check(); err != nil {
		return err
	}
	if f.Length == 0 {
		// An empty object is complete as soon as its length is known, so its digest is checked first.
		if err := checkWhole(task.Spec{ID: p.id}, nil); err != nil {
			return fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	p.making.Lock()
	defer p.making.Unlock()
	if known, err := p.compare(f); known {
		return err
	}
	r, err := p.create(p.id, f)
	if err != nil {
		return fmt.Errorf("%w: making room for task %s of %d bytes: %w", errSpace, p.id, f.Length, err)
	}
	p.adopt(r)
	close(p.ready)
	return nil
}

// compare reports whether metadata is known already, and whether f contradicts it.
func (p *proof) compare(f piece.Metadata) (known bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.replica == nil {
		return false, nil
	}
	if p.layout != f.Layout() {
		return true, fmt.Errorf("%w: length %d, was %d", errMetadata, f.Length, p.layout.Length)
	}
	return true, nil
}

// hasMetadata reports whether the metadata is known.
func (p *proof) hasMetadata() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// staleError means that a peer still sends what was revoked.
type staleError struct{ epoch uint64 }

func (e *staleError) Error() string { return fmt.Sprintf("epoch %d was revoked", e.epoch) }

// add verifies runs and keeps the new ones. It returns the numbers of the runs that it keeps or kept before, so that no
// host sends them back to their sender. A *staleError is harmless: add leaves revoked runs out.
func (p *proof) add(runs []piece.DigestRun, certs [][]byte) (numbers []int, err error) {
	return p.take(runs, certs, true)
}

// take is add, which stores runs in the replica only with keep. It keeps good runs, also when others of the same
// message are bad.
func (p *proof) take(runs []piece.DigestRun, certs [][]byte, keep bool) (numbers []int, err error) {
	freshCerts, err := p.certify(certs)
	var good, fresh []piece.DigestRun
	var stale *staleError
	for _, r := range runs {
		if err != nil {
			break
		}
		var known bool
		switch known, err = p.judge(r, good); {
		case errors.As(err, &stale):
			err = nil
		case err == nil && known:
			good = append(good, r)
		case err == nil:
			good, fresh = append(good, r), append(fresh, r)
		}
	}
	// The disk comes first: after a crash, too, this host must have the proof of what it passed on.
	if keep && p.hasMetadata() && len(fresh)+len(freshCerts) > 0 {
		// A replica that has everything loses nothing without them: a disk may have become read-only.
		if failed := p.replica.AddRuns(fresh, freshCerts); failed != nil && !p.replica.Have().Full() {
			err = errors.Join(err, fmt.Errorf("%w: keeping digests of task %s: %w", errSpace, p.id, failed))
		}
	}
	stored := p.storedUnsigned(fresh)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range good {
		n, ok := p.found[nameOf(r)]
		if !ok && p.revoked[r.Epoch] { // revoked since judge
			stale = &staleError{r.Epoch}
			continue
		}
		if !ok {
			var wrong error
			if n, wrong = p.note(r, stored); wrong != nil {
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
func (p *proof) certify(certs [][]byte) (fresh [][]byte, err error) {
	for _, der := range certs {
		key, err := p.verifier.AddCertificate(der)
		if err != nil {
			return fresh, fmt.Errorf("certificate of a coordinator: %w", err)
		}
		p.mu.Lock()
		if p.certs[key] == nil {
			p.certs[key] = der
			fresh = append(fresh, der)
		}
		p.mu.Unlock()
	}
	return fresh, nil
}

// judge verifies a run and takes its metadata, and reports whether it was known already; before are the good runs of
// the same message. The error is a *staleError if the epoch was revoked.
func (p *proof) judge(r piece.DigestRun, before []piece.DigestRun) (known bool, err error) {
	p.mu.Lock()
	_, known = p.found[nameOf(r)]
	revoked := p.revoked[r.Epoch]
	p.mu.Unlock()
	switch {
	case known:
		return true, nil
	case revoked:
		return false, &staleError{r.Epoch}
	}
	if err := r.Check(); err != nil {
		return false, err
	}
	if err := p.verifier.VerifyRun(p.id, r); err != nil {
		return false, fmt.Errorf("run of pieces [%d, %d): %w", r.First, r.End(), err)
	}
	if err := p.setMetadata(r.Metadata); err != nil {
		notOlder := func(o piece.DigestRun) bool { return o.Epoch >= r.Epoch }
		p.mu.Lock()
		newest := p.replica != nil && !slices.ContainsFunc(p.runs, notOlder)
		p.mu.Unlock()
		if errors.Is(err, errMetadata) && newest && !slices.ContainsFunc(before, notOlder) {
			// The newer attempt began because the older one was wrong.
			err = fmt.Errorf("%w: %w", errContradiction, err)
		}
		return false, err
	}
	return false, nil
}

// storedUnsigned returns the digests of those pieces of runs that are stored though no coordinator signed them.
func (p *proof) storedUnsigned(runs []piece.DigestRun) map[piece.Index]piece.Digest {
	var doubtful []piece.Index
	p.mu.Lock()
	for _, r := range runs {
		for i := r.First; i < r.End(); i++ {
			if !p.known.Has(i) {
				doubtful = append(doubtful, i)
			}
		}
	}
	replica := p.replica
	p.mu.Unlock()
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

// note enters a verified run. It fails if the run is over the checked whole and contradicts an earlier run, or if it
// contradicts a stored piece that no coordinator had signed yet. The caller holds mu.
func (p *proof) note(r piece.DigestRun, stored map[piece.Index]piece.Digest) (int, error) {
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		here, ok := stored[i]
		switch {
		case p.known.Has(i) && p.digests[i] != d && r.Final, !p.known.Has(i) && ok && here != d:
			return 0, fmt.Errorf("%w: piece %d of task %s", errContradiction, i, p.id)
		}
	}
	n := len(p.runs)
	p.runs = append(p.runs, r)
	p.found[nameOf(r)] = n
	for j, d := range r.Digests {
		i := r.First + piece.Index(j)
		if p.known.Set(i) {
			p.digests[i], p.runOf[i] = d, int32(n)
		}
	}
	return n, nil
}

// isWhole reports whether a run holds the digest of every piece, checked as a whole.
func (p *proof) isWhole(r piece.DigestRun) bool {
	return r.Final && r.First == 0 && int(r.End()) == p.known.Len()
}

// digest returns the digest that piece i must have.
func (p *proof) digest(i piece.Index) (piece.Digest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known.Has(i) {
		return piece.Digest{}, false
	}
	return p.digests[i], true
}

// span returns the pieces of run n, and the key that signed it.
func (p *proof) span(n int) (first, end piece.Index, key piece.KeyID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &p.runs[n]
	return r.First, r.End(), r.Key
}

// knownSet returns a copy of the set of pieces whose digest is known.
func (p *proof) knownSet() piece.Bitmap {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.Clone()
}

// runFor returns the number of the run that holds the digest of piece i, or -1.
func (p *proof) runFor(i piece.Index) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known.Has(i) {
		return -1
	}
	return int(p.runOf[i])
}

// knowsAll reports whether the digest of every piece is known.
func (p *proof) knowsAll() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.Full()
}

// any reports whether there is a run at all.
func (p *proof) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.runs) > 0
}

// message returns the runs with those numbers and the certificates of their keys, less
// those that the other side knows; it notes them as known.
func (p *proof) message(numbers []int, knows map[piece.KeyID]bool) (runs []piece.DigestRun, certs [][]byte) {
	defer func() { certs = current(p.verifier, certs) }() // without mu
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range numbers {
		r := p.runs[n]
		runs = append(runs, r)
		if der := p.certs[r.Key]; der != nil && !knows[r.Key] {
			knows[r.Key] = true
			certs = append(certs, der)
		}
	}
	return runs, certs
}

// coversAll reports whether coordinators signed the digest of every piece.
func (p *proof) coversAll() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replica != nil && p.known.Full() && (len(p.runs) > 0 || p.known.Len() == 0)
}

// current returns the certificates to send in place of others, each once.
func current(v Verifier, certs [][]byte) (list [][]byte) {
	for _, der := range certs {
		der = v.Current(der)
		if !slices.ContainsFunc(list, func(o []byte) bool { return bytes.Equal(o, der) }) {
			list = append(list, der)
		}
	}
	return list
}

// concerns reports whether a run of that epoch is here, and rejects the epoch from now on.
func (p *proof) concerns(epoch uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoked[epoch] = true
	return slices.ContainsFunc(p.runs, func(r piece.DigestRun) bool { return r.Epoch == epoch })
}

// epochs are the epochs of all runs.
func (p *proof) epochs() (list []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.runs {
		if !slices.Contains(list, r.Epoch) {
			list = append(list, r.Epoch)
		}
	}
	return list
}

// certificate is that of a coordinator's key, nil where none came.
func (p *proof) certificate(key piece.KeyID) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.certs[key]
}

// size is about how many bytes run n has on the wire.
func (p *proof) size(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return 160 + len(p.runs[n].Digests)*len(piece.Digest{})
}
