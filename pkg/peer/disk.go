package peer

import (
	"sync"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// What lies on a disk from before the program's start may have rotted since, under a journal
// that says it is good. So the first reader of such a piece compares it with its digest, once
// for all until the next start; what was verified on its way in by this process counts as
// compared.

// comparedMax bounds how many tasks' compared pieces are remembered.
const comparedMax = 8192

// compared are the pieces of one task that this process has compared with their digests. Safe
// for concurrent use.
type compared struct {
	mu   sync.Mutex
	bits piece.Bitmap
}

func (c *compared) set(i piece.Index) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bits.Set(i)
}

func (c *compared) has(i piece.Index) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bits.Has(i)
}

// compared returns what was compared of a task of n pieces.
func (e *Engine) comparedOf(id task.ID, n int) *compared {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.compared[id]
	if c == nil || c.bits.Len() != n {
		if len(e.compared) >= comparedMax {
			clear(e.compared) // they are compared once more
		}
		c = &compared{bits: piece.NewBitmap(n)}
		e.compared[id] = c
	}
	return c
}

// keep stores a piece whose bytes are known to match their digest.
func (d *Download) keep(i piece.Index, data []byte, sum piece.Digest) error {
	if err := d.ledger.replica.WritePiece(i, data, sum); err != nil {
		return err
	}
	d.compared().set(i)
	return nil
}

func (d *Download) compared() *compared {
	d.comparedOnce.Do(func() { d.comparedSet = d.e.comparedOf(d.id, d.ledger.replica.Facts().Layout().Count()) })
	return d.comparedSet
}

// sound reports whether a stored piece is what its digest says; it reads the piece only where
// this process has not compared it yet. What is not sound ends the download, and all that is
// stored of the content goes: the disk cannot be believed.
func (d *Download) sound(i piece.Index) bool {
	if d.compared().has(i) {
		return true
	}
	want, ok := d.ledger.replica.Digest(i)
	if !ok {
		return true // it was lost meanwhile: its reader will see
	}
	if d.damaged(i, want) {
		d.post(func() { d.dropDamaged(i) })
		return false
	}
	d.compared().set(i)
	return true
}

// damaged reads a stored piece and compares it with its digest. What cannot be read is not
// damaged: the store deals with that.
func (d *Download) damaged(i piece.Index, want piece.Digest) bool {
	layout := d.ledger.replica.Facts().Layout()
	buf := d.e.buffers.get(layout.Size(i))
	defer d.e.buffers.put(buf)
	n, _ := d.ledger.replica.ReadAt(buf, layout.Offset(i))
	return n == len(buf) && piece.Sum(buf) != want
}

// dropDamaged drops a content of which a piece is damaged; it is brought anew when it is wanted.
func (d *Download) dropDamaged(i piece.Index) {
	d.log.Error("stored content is damaged, so it is dropped", "piece", i)
	d.e.mu.Lock()
	delete(d.e.compared, d.id)
	d.e.mu.Unlock()
	if err := d.e.cfg.Store.Remove(d.id); err != nil {
		d.log.Error("cannot drop a damaged task", "error", err)
	}
	d.fail(errDamaged)
}
