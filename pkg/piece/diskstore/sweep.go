package diskstore

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Sweep deletes the files of a task that the store no longer knows: files that [Store.Remove] could not delete, and
// files that the store set aside for a newer version of the program. A replica that was created since stays. After a
// nil error, a power cut cannot restore the old files.
func (s *Store) Sweep(id task.ID) error {
	s.life.RLock()
	defer s.life.RUnlock()
	s.retrying.Lock()
	defer s.retrying.Unlock()
	err := errors.Join(s.sweepRest(id), s.deleteUnusable(id), s.sweepAside(id))
	for _, dir := range []string{filepath.Dir(s.dir(id)), s.path("tasks", "spare"), s.path("aside")} {
		if err != nil {
			break
		}
		if err = s.fs.SyncDir(dir); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("removing task %s: %w", id.Short(), Remedy(s.cfg.Dir, err))
	}
	return nil
}

// sweepRest deletes the directory of a task that the store does not know.
func (s *Store) sweepRest(id task.ID) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return piece.ErrClosed
		}
		e := s.tasks[id]
		if e == nil {
			// The entry reserves the directory, so that no other call creates the task there meanwhile.
			e = newEntry(id, piece.Metadata{}, s.dir(id))
			e.gone = true
			s.tasks[id] = e
			s.mu.Unlock()
			return s.finishRemoval(e, func() error { return s.remove(s.dir(id)) })
		}
		gone := e.gone
		s.mu.Unlock()
		if !gone {
			return nil
		}
		<-e.dead
	}
}

// sweepAside deletes the files of a task that were set aside for a newer version of the program.
func (s *Store) sweepAside(id task.ID) error {
	path := s.path("aside", dirName(id))
	if err := s.deleteDir(path); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeUnusable(path)
	return nil
}
