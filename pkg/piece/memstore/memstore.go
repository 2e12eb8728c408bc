// Package memstore keeps verified pieces in memory: for a short-lived dfget, for a node without a disk, and for
// simulations of hundreds of nodes in one process.
//
// It fulfils the contract of [piece.Store] (storetest proves it), except that all pieces are lost when the
// process ends. It never holds a lock while bytes move. Start at [New]; several stores with one [Pool] share
// the memory of equal pieces.
package memstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Config sets the limits of a store. The zero value has none.
type Config struct {
	// Quota bounds the bytes that the store holds; a task counts with its whole length from its creation on. A
	// smaller quota evicts more. Default 0: no limit.
	Quota int64
	// Pool is shared with other stores of this process: a piece that several of them hold is in memory once.
	// It costs a comparison of bytes for each write of a piece that is already in the pool. Default nil: every
	// store keeps its own copy.
	Pool *Pool
}

// Store is a [piece.Store] in memory.
type Store struct {
	cfg   Config
	clock atomic.Int64 // the latest tick, see tick

	// mu is held to find, add or drop a task, never while bytes move.
	mu     sync.Mutex
	tasks  map[task.ID]*entry
	used   int64 // bytes, as the quota counts them
	closed bool
}

// entry is one task.
type entry struct {
	id       task.ID
	facts    piece.Metadata
	refs     int          // open replicas, under Store.mu
	lastRead atomic.Int64 // nanoseconds since 1970

	// mu guards the fields below and is never held while bytes move: the bytes of a stored piece never change.
	mu           sync.RWMutex
	err          error // why the task is gone, nil while it is stored
	have         piece.Bitmap
	pieces       []held
	runs         []piece.DigestRun
	certificates [][]byte
}

// held is one piece; data is nil if it is missing.
type held struct {
	data   []byte
	digest piece.Digest
	shared bool // data belongs to the pool
}

// New returns an empty store.
func New(cfg Config) *Store {
	return &Store{cfg: cfg, tasks: map[task.ID]*entry{}}
}

// Create implements [piece.Store].
func (s *Store) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	if _, err := task.ParseID(string(id)); err != nil {
		return nil, fmt.Errorf("creating a task: %w", err)
	}
	if err := f.Check(); err != nil {
		return nil, fmt.Errorf("creating task %s: %w", id.Short(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, piece.ErrClosed
	}
	c := s.tasks[id]
	if c == nil {
		if err := s.evictFor(f.Length); err != nil {
			return nil, fmt.Errorf("creating task %s of %d bytes: %w", id.Short(), f.Length, err)
		}
		n := f.Layout().Count()
		c = &entry{id: id, facts: f, have: piece.NewBitmap(n), pieces: make([]held, n)}
		c.lastRead.Store(s.tick())
		s.tasks[id] = c
		s.used += f.Length
	}
	if c.facts.Length != f.Length || c.facts.PieceSize != f.PieceSize {
		return nil, fmt.Errorf("creating task %s of %d bytes in pieces of %d, stored are %d in %d: %w",
			id.Short(), f.Length, f.PieceSize, c.facts.Length, c.facts.PieceSize, piece.ErrOtherMetadata)
	}
	c.refs++
	return &replica{s: s, c: c}, nil
}

// Open implements [piece.Store].
func (s *Store) Open(id task.ID) (piece.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, piece.ErrClosed
	}
	c := s.tasks[id]
	if c == nil {
		return nil, fmt.Errorf("opening task %s: %w", id.Short(), piece.ErrNotFound)
	}
	c.refs++
	return &replica{s: s, c: c}, nil
}

// Complete implements [piece.Store].
func (s *Store) Complete(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.tasks[id]
	if c == nil || s.closed {
		return false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.have.Full()
}

// Inventory implements [piece.Store].
func (s *Store) Inventory() []piece.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]piece.Entry, 0, len(s.tasks))
	now := time.Now().UnixNano()
	for _, c := range s.tasks {
		c.mu.RLock()
		have := c.have.Count()
		c.mu.RUnlock()
		out = append(out, piece.Entry{
			ID: c.id, Metadata: c.facts, Have: have, Complete: have == c.facts.Layout().Count(),
			LastRead: time.Unix(0, min(c.lastRead.Load(), now)), // the clock may have been set back
		})
	}
	return out
}

// Remove implements [piece.Store].
func (s *Store) Remove(id task.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return piece.ErrClosed
	}
	if c := s.tasks[id]; c != nil {
		s.drop(c, piece.ErrRemoved)
	}
	return nil
}

// Close implements [piece.Store].
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.tasks {
		s.drop(c, piece.ErrClosed)
	}
	return nil
}

// tick returns the time in nanoseconds since 1970, later than every earlier tick, so that the order of reads is
// known even if the clock stands still (testing/synctest).
func (s *Store) tick() int64 {
	for {
		last := s.clock.Load()
		now := max(time.Now().UnixNano(), last+1)
		if s.clock.CompareAndSwap(last, now) {
			return now
		}
	}
}

// evictFor evicts the least recently read tasks until need more bytes fit into the quota. It evicts nothing if
// that is not enough. The caller holds mu.
func (s *Store) evictFor(need int64) error {
	if s.cfg.Quota <= 0 || s.used+need <= s.cfg.Quota {
		return nil
	}
	var idle []*entry
	evictable := s.cfg.Quota - s.used
	for _, c := range s.tasks {
		if c.refs == 0 {
			idle = append(idle, c)
			evictable += c.facts.Length
		}
	}
	if evictable < need {
		return fmt.Errorf("%w: quota %d bytes, of which %d are free or evictable",
			piece.ErrNoSpace, s.cfg.Quota, evictable)
	}
	slices.SortFunc(idle, func(a, b *entry) int { return cmp.Compare(a.lastRead.Load(), b.lastRead.Load()) })
	for _, c := range idle {
		if s.used+need <= s.cfg.Quota {
			break
		}
		s.drop(c, piece.ErrRemoved)
	}
	return nil
}

// drop removes a task and frees its bytes. The caller holds mu.
func (s *Store) drop(c *entry, why error) {
	delete(s.tasks, c.id)
	s.used -= c.facts.Length
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = why
	for _, h := range c.pieces {
		if h.shared {
			s.cfg.Pool.release(h.digest)
		}
	}
	c.pieces, c.runs, c.certificates = nil, nil, nil
	c.have = piece.NewBitmap(c.facts.Layout().Count())
}

// replica is one open use of a task.
type replica struct {
	s      *Store
	c      *entry
	closed atomic.Bool
}

func (r *replica) ID() task.ID              { return r.c.id }
func (r *replica) Metadata() piece.Metadata { return r.c.facts }

// failure returns why r is no longer usable, or nil. The caller holds c.mu.
func (r *replica) failure() error {
	if r.closed.Load() {
		return fs.ErrClosed
	}
	return r.c.err
}

func (r *replica) Have() piece.Bitmap {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	return r.c.have.Clone()
}

func (r *replica) Has(i piece.Index) bool {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	return r.failure() == nil && r.c.have.Has(i)
}

func (r *replica) Digest(i piece.Index) (piece.Digest, bool) {
	r.c.mu.RLock()
	defer r.c.mu.RUnlock()
	if r.failure() != nil || !r.c.have.Has(i) {
		return piece.Digest{}, false
	}
	return r.c.pieces[i].digest, true
}

func (r *replica) WritePiece(i piece.Index, data []byte, d piece.Digest) error {
	c, l := r.c, r.c.facts.Layout()
	if i < 0 || int(i) >= l.Count() || int64(len(data)) != l.Size(i) {
		return fmt.Errorf("writing piece %d of task %s: %w: got %d bytes, expected %d",
			i, c.id.Short(), piece.ErrInvalidMetadata, len(data), l.Size(i))
	}
	c.mu.RLock()
	err, stored := r.failure(), c.have.Has(i)
	c.mu.RUnlock()
	if err != nil || stored {
		return err
	}
	h := held{digest: d}
	if h.data, h.shared = r.s.cfg.Pool.intern(d, data); !h.shared {
		h.data = bytes.Clone(data)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err = r.failure(); err == nil && c.have.Set(i) {
		c.pieces[i] = h
		return nil
	}
	if h.shared {
		r.s.cfg.Pool.release(d)
	}
	return err
}

// span returns the bytes [off, off+n) piece by piece, up to the first missing piece, and ErrMissing if there is
// one.
func (r *replica) span(off, n int64) (parts [][]byte, err error) {
	c, l := r.c, r.c.facts.Layout()
	first, end := l.Span(off, n)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if err := r.failure(); err != nil {
		return nil, fmt.Errorf("reading task %s: %w", c.id.Short(), err)
	}
	for i := first; i < end; i++ {
		if !c.have.Has(i) {
			return parts, fmt.Errorf("reading task %s: piece %d: %w", c.id.Short(), i, piece.ErrMissing)
		}
		from := max(off-l.Offset(i), 0)
		to := min(off+n-l.Offset(i), l.Size(i))
		parts = append(parts, c.pieces[i].data[from:to])
	}
	c.lastRead.Store(r.s.tick())
	return parts, nil
}

func (r *replica) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading task %s at offset %d", r.c.id.Short(), off)
	}
	want := min(int64(len(p)), max(r.c.facts.Length-off, 0))
	parts, err := r.span(off, want)
	n := 0
	for _, part := range parts {
		n += copy(p[n:], part)
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (r *replica) CopyTo(w io.Writer, off, n int64) (int64, error) {
	if err := r.c.facts.Layout().Within(off, n); err != nil {
		return 0, fmt.Errorf("reading task %s: %w", r.c.id.Short(), err)
	}
	parts, err := r.span(off, n)
	if err != nil {
		return 0, err
	}
	written := int64(0)
	for _, part := range parts {
		k, err := w.Write(part)
		written += int64(k)
		if err == nil && k < len(part) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return written, fmt.Errorf("sending bytes of task %s: %w", r.c.id.Short(), err)
		}
	}
	return written, nil
}

func (r *replica) AddRuns(runs []piece.DigestRun, certificates [][]byte) error {
	c := r.c
	var errs error
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := r.failure(); err != nil {
		return err
	}
	for _, cert := range certificates {
		if !slices.ContainsFunc(c.certificates, func(have []byte) bool { return bytes.Equal(have, cert) }) {
			c.certificates = append(c.certificates, bytes.Clone(cert))
		}
	}
	for _, run := range runs {
		switch err := run.Check(); {
		case err != nil:
			errs = errors.Join(errs, err)
		case run.Metadata.Length != c.facts.Length || run.Metadata.PieceSize != c.facts.PieceSize:
			errs = errors.Join(errs, fmt.Errorf("run of task %s: %w", c.id.Short(), piece.ErrOtherMetadata))
		case !slices.ContainsFunc(c.runs, func(have piece.DigestRun) bool { return equalRuns(have, run) }):
			c.runs = append(c.runs, cloneRun(run))
		}
	}
	return errs
}

func (r *replica) Runs() ([]piece.DigestRun, [][]byte) {
	c := r.c
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r.failure() != nil {
		return nil, nil
	}
	var runs []piece.DigestRun
	var certificates [][]byte
	for _, run := range c.runs {
		runs = append(runs, cloneRun(run))
	}
	for _, cert := range c.certificates {
		certificates = append(certificates, bytes.Clone(cert))
	}
	return runs, certificates
}

func (r *replica) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.c.refs--
	return nil
}

func cloneRun(r piece.DigestRun) piece.DigestRun {
	r.Digests, r.Signature = slices.Clone(r.Digests), bytes.Clone(r.Signature)
	return r
}

// equalRuns compares the signatures first: almost all runs differ there.
func equalRuns(a, b piece.DigestRun) bool {
	return bytes.Equal(a.Signature, b.Signature) && a.First == b.First && a.Epoch == b.Epoch &&
		a.Key == b.Key && a.Final == b.Final && a.Metadata == b.Metadata && slices.Equal(a.Digests, b.Digests)
}

// Pool holds pieces for several stores, each piece once, as long as one of them has it. The zero value is ready
// for use. Safe for concurrent use.
type Pool struct {
	// mu is held to find or count a piece, never while bytes move.
	mu     sync.Mutex
	pieces map[piece.Digest]*pooled
}

type pooled struct {
	data []byte
	refs int
}

// Bytes returns the number of bytes in the pool; each piece counts once.
func (p *Pool) Bytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := int64(0)
	for _, e := range p.pieces {
		sum += int64(len(e.data))
	}
	return sum
}

// intern returns the pool's copy of data; the caller releases it. It returns false if there is no pool, or if
// the pool holds other bytes under that digest, so that a wrong digest of one caller does not affect others.
func (p *Pool) intern(d piece.Digest, data []byte) ([]byte, bool) {
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	e := p.pieces[d]
	if e != nil {
		e.refs++
	}
	p.mu.Unlock()
	if e == nil {
		fresh := &pooled{data: bytes.Clone(data)}
		p.mu.Lock()
		if p.pieces == nil {
			p.pieces = map[piece.Digest]*pooled{}
		}
		if e = p.pieces[d]; e == nil {
			e = fresh
			p.pieces[d] = e
		}
		e.refs++
		p.mu.Unlock()
		if e == fresh {
			return e.data, true
		}
	}
	if !bytes.Equal(e.data, data) {
		p.release(d)
		return nil, false
	}
	return e.data, true
}

// release ends one use of a piece that intern returned.
func (p *Pool) release(d piece.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.pieces[d]; e != nil {
		if e.refs--; e.refs == 0 {
			delete(p.pieces, d)
		}
	}
}
