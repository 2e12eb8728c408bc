package peer

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// An object for which this host's store has no room passes by it: the pieces that readers need next come from
// other hosts, stay in memory until they are read, and come again for the next reader. The host offers
// them to nobody and never announces the object as held. Only a host that reads the origin itself needs a
// store: see steerOrigin.

// passingMost bounds the objects that pass by the store at once.
const passingMost = 8

// passing is the replica of such an object: pieces in memory. The loop drops those that no reader needs.
type passing struct {
	id    task.ID
	facts piece.Metadata

	// mu is held to look up, add or drop a piece, never while bytes are sent.
	mu     sync.Mutex
	pieces map[piece.Index]passingPiece
}

type passingPiece struct {
	data   []byte
	digest piece.Digest
}

func newPassing(id task.ID, f piece.Metadata) *passing {
	return &passing{id: id, facts: f, pieces: make(map[piece.Index]passingPiece)}
}

// ID implements [piece.Replica].
func (p *passing) ID() task.ID { return p.id }

// Metadata implements [piece.Replica].
func (p *passing) Metadata() piece.Metadata { return p.facts }

// Have implements [piece.Replica].
func (p *passing) Have() piece.Bitmap {
	p.mu.Lock()
	defer p.mu.Unlock()
	have := piece.NewBitmap(p.facts.Layout().Count())
	for i := range p.pieces {
		have.Set(i)
	}
	return have
}

func (p *passing) get(i piece.Index) (passingPiece, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.pieces[i]
	return one, ok
}

// Has implements [piece.Replica].
func (p *passing) Has(i piece.Index) bool {
	_, ok := p.get(i)
	return ok
}

// Digest implements [piece.Replica].
func (p *passing) Digest(i piece.Index) (piece.Digest, bool) {
	one, ok := p.get(i)
	return one.digest, ok
}

// WritePiece implements [piece.Replica].
func (p *passing) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	if size := p.facts.Layout().Size(i); int64(len(data)) != size {
		return fmt.Errorf("piece %d has %d bytes, not %d: %w", i, len(data), size, piece.ErrInvalidMetadata)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.pieces[i]; !ok {
		p.pieces[i] = passingPiece{append([]byte(nil), data...), d}
	}
	return nil
}

// ReadAt implements [piece.Replica].
func (p *passing) ReadAt(b []byte, off int64) (n int, err error) {
	layout := p.facts.Layout()
	for n < len(b) {
		at := off + int64(n)
		if at >= layout.Length {
			return n, io.EOF
		}
		i := layout.At(at)
		one, ok := p.get(i)
		if !ok {
			return n, fmt.Errorf("piece %d: %w", i, piece.ErrMissing)
		}
		n += copy(b[n:], one.data[at-layout.Offset(i):])
	}
	return n, nil
}

// CopyTo implements [piece.Replica]. It always fails: this host announces none of these pieces.
func (p *passing) CopyTo(io.Writer, int64, int64) (int64, error) { return 0, piece.ErrMissing }

// AddRuns implements [piece.Replica]. The download's proof keeps them.
func (p *passing) AddRuns([]piece.DigestRun, [][]byte) error { return nil }

// Runs implements [piece.Replica].
func (p *passing) Runs() ([]piece.DigestRun, [][]byte) { return nil, nil }

// Close implements [piece.Replica].
func (p *passing) Close() error { return nil }

// drop forgets the pieces outside wanted, and returns them.
func (p *passing) drop(wanted piece.Bitmap) (list []piece.Index) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.pieces {
		if !wanted.Has(i) {
			delete(p.pieces, i)
			list = append(list, i)
		}
	}
	return list
}

// makeReplica makes room for an object in the store, or has it pass by the store. Connections and
// announces call it, not the loop.
func (d *Download) makeReplica(id task.ID, f piece.Metadata) (piece.Replica, error) {
	r, err := d.e.create(id, f)
	if !errors.Is(err, piece.ErrNoSpace) || !d.mayPass.Load() {
		return r, err
	}
	if d.e.passing.Add(1) > passingMost {
		d.e.passing.Add(-1)
		return nil, err
	}
	d.log.Warn("the store has no space for an object, so readers get it past the store", "error", err)
	return newPassing(id, f), nil
}

// passes returns the replica of an object that passes by the store, else nil.
func (d *Download) passes() *passing {
	if !d.proof.hasMetadata() {
		return nil
	}
	p, _ := d.proof.replica.(*passing)
	return p
}

// pass requests the pieces that readers need next, and drops those that they have read.
func (d *Download) pass() {
	p := d.passes()
	if p == nil || d.pick == nil {
		return
	}
	var readers []policy.Position
	for _, w := range d.wants.ranges {
		if w.reader != nil {
			readers = append(readers, policy.Position{At: w.reader.pos.Load(), End: w.reader.end})
		}
	}
	wanted := policy.Pass(p.facts.Layout(), readers)
	for _, i := range p.drop(wanted) {
		d.pick.Lost(i)
	}
	d.pick.Want(wanted)
}

// refuseToPass fails a download that must keep the whole object, as a seed must, if that object passes by the store.
func (d *Download) refuseToPass() bool {
	if d.passes() == nil {
		return false
	}
	d.end.failHere(fmt.Errorf("%w: task %s passes by the store, and cannot be kept whole", piece.ErrNoSpace, d.id))
	return true
}

// notePassing sets whether an object may pass by the store from now on.
func (d *Download) notePassing() {
	d.mayPass.Store(d.wants.interest == policy.Ranges && d.wants.whole == 0 && !d.policy.AtOrigin())
}
