package diskstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/darter-io/darter/pkg/piece"
)

// spoolStep is the step in bytes by which a spool's share of the quota grows. Smaller steps take the lock more often;
// larger ones count bytes that are not written yet.
const spoolStep = 4 << 20

// Spool implements [piece.Spooler]. Spools count in the quota as they grow, and evict the least recently read tasks.
// All spools together may take half of the quota, because the task that a spool becomes needs the same space again.
func (s *Store) Spool() (piece.Spool, error) {
	s.life.RLock()
	defer s.life.RUnlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("making a spool: %w", piece.ErrClosed)
	}
	name := s.temporary()
	f, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a spool: %w", Remedy(s.cfg.Dir, err))
	}
	// The kernel frees a file without a name when the process ends. If a file system keeps the name (NFS), the next
	// start empties tmp/.
	if err := s.fs.RemoveAll(name); err != nil {
		return nil, fmt.Errorf("making a spool: %w", errors.Join(Remedy(s.cfg.Dir, err), f.Close()))
	}
	return &spool{s: s, f: f}, nil
}

// spool is a file from tmp/ without a name.
type spool struct {
	s      *Store
	f      File
	n      int64 // bytes written
	share  int64 // bytes that the quota counts
	closed bool
}

// Write implements [piece.Spool].
func (p *spool) Write(b []byte) (int, error) {
	if p.closed {
		return 0, fmt.Errorf("writing a spool: %w", fs.ErrClosed)
	}
	p.s.life.RLock()
	defer p.s.life.RUnlock()
	if err := p.s.growSpool(p, p.n+int64(len(b))); err != nil {
		return 0, fmt.Errorf("keeping %d bytes of a body of unknown length: %w", p.n+int64(len(b)), err)
	}
	err := p.s.evictWhileFull(int64(len(b)), func() error {
		_, err := p.f.WriteAt(b, p.n)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("keeping %d bytes of a body of unknown length: %w",
			p.n+int64(len(b)), Remedy(p.s.cfg.Dir, err))
	}
	p.n += int64(len(b))
	return len(b), nil
}

// growSpool grows the spool's share of the quota to at least size bytes.
func (s *Store) growSpool(p *spool, size int64) error {
	more := (size - p.share + spoolStep - 1) / spoolStep * spoolStep
	if more <= 0 {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return piece.ErrClosed
	}
	if quota := s.cfg.Quota; quota > 0 {
		if most := quota / 2; s.spooled+more > most {
			more = min(more, most-s.spooled)
			if p.share+more < size {
				s.mu.Unlock()
				return fmt.Errorf("%w, half of the quota of %d bytes, with %d: "+
					"have its origin declare the length, or raise the quota", piece.ErrSpoolFull, quota, s.spooled)
			}
		}
	}
	victims, err := s.evictFor(more)
	if err == nil {
		s.used += more
		s.spooled += more
		p.share += more
	}
	s.mu.Unlock()
	s.dispose(victims, "quota")
	return err
}

// Len implements [piece.Spool].
func (p *spool) Len() int64 { return p.n }

// Reader implements [piece.Spool].
func (p *spool) Reader() io.Reader { return io.NewSectionReader(p.f, 0, p.n) }

// Close implements [piece.Spool].
func (p *spool) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	err := p.f.Close()
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.used -= p.share
	p.s.spooled -= p.share
	return err
}

var _ piece.Spooler = (*Store)(nil)
