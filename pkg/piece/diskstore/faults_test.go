package diskstore_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// disk is the operating system's file layer with a hook before each operation. The hook returns how many bytes may be
// moved, and the error; a nil error lets the operation run.
type disk struct {
	diskstore.OS
	mu   sync.Mutex
	hook func(op, name string, n int) (int, error)
}

func (d *disk) set(hook func(op, name string, n int) (int, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = hook
}

func (d *disk) ask(op, name string, n int) (int, error) {
	d.mu.Lock()
	hook := d.hook
	d.mu.Unlock()
	if hook == nil {
		return n, nil
	}
	return hook(op, filepath.Base(name), n)
}

func (d *disk) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	f, err := d.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, d: d, name: name}, nil
}

func (d *disk) MkdirAll(name string, perm fs.FileMode) error {
	if _, err := d.ask("mkdir", name, 0); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return d.OS.MkdirAll(name, perm)
}

func (d *disk) Allocate(f diskstore.File, size int64) error {
	if _, err := d.ask("allocate", f.(*diskFile).name, int(size)); err != nil {
		return err
	}
	return d.OS.Allocate(f.(*diskFile).File, size)
}

func (d *disk) Datasync(f diskstore.File) error {
	if _, err := d.ask("sync", f.(*diskFile).name, 0); err != nil {
		return err
	}
	return d.OS.Datasync(f.(*diskFile).File)
}

// SyncAll asks the hook for "sync all", under the name of the lock. Without a hook it is not supported.
func (d *disk) SyncAll(f *os.File) error {
	d.mu.Lock()
	hook := d.hook
	d.mu.Unlock()
	if hook == nil {
		return errors.ErrUnsupported
	}
	_, err := hook("sync all", filepath.Base(f.Name()), 0)
	return err
}

type diskFile struct {
	diskstore.File
	d    *disk
	name string
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.d.ask("write", f.name, len(p))
	if err == nil {
		return f.File.WriteAt(p, off)
	}
	k, writeErr := f.File.WriteAt(p[:n], off)
	if writeErr != nil {
		err = writeErr
	}
	if err == io.ErrShortWrite {
		err = nil // as write(2) does: fewer bytes and no error
	}
	return k, err
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := f.d.ask("read", f.name, len(p)); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *diskFile) Read(p []byte) (int, error) {
	if _, err := f.d.ask("read", f.name, len(p)); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *diskFile) Truncate(size int64) error {
	if _, err := f.d.ask("truncate", f.name, 0); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (d *disk) fail(f storetest.Fault) {
	on := func(op, name string, allow func(n int) int, err error) {
		d.set(func(o, file string, n int) (int, error) {
			if o == op && file == name {
				return allow(n), err
			}
			return n, nil
		})
	}
	none := func(int) int { return 0 }
	half := func(n int) int { return n / 2 }
	switch f {
	case storetest.ShortWrite:
		on("write", "data", half, io.ErrShortWrite)
	case storetest.WriteNoSpace:
		on("write", "data", half, syscall.ENOSPC)
	case storetest.WriteError:
		on("write", "data", none, syscall.EIO)
	case storetest.NoteShort:
		on("write", "journal", half, io.ErrShortWrite)
	case storetest.NoteNoSpace:
		on("write", "journal", half, syscall.EDQUOT)
	case storetest.NoteStuck:
		d.set(func(op, name string, n int) (int, error) {
			if name == "journal" && (op == "write" || op == "truncate") {
				return n / 2, syscall.EIO
			}
			return n, nil
		})
	case storetest.SyncError:
		d.set(func(op, name string, n int) (int, error) {
			if op == "sync" {
				return 0, syscall.EIO
			}
			return n, nil
		})
	case storetest.ReadError:
		on("read", "data", none, syscall.EIO)
	}
}

func TestFaults(t *testing.T) {
	for name, syncBytes := range map[string]int64{"syncing seldom": 0, "syncing always": 1} {
		t.Run(name, func(t *testing.T) {
			disks := &sync.Map{}
			configs := &sync.Map{}
			open := func(t testing.TB, cfg diskstore.Config) piece.Store {
				d := &disk{}
				cfg.FS = d
				s := mustOpen(t, cfg)
				disks.Store(s, d)
				configs.Store(s, cfg)
				return s
			}
			storetest.RunFaults(t, storetest.FaultFactory{
				Factory: storetest.Factory{
					New: func(t testing.TB) piece.Store {
						return open(t, diskstore.Config{Dir: t.TempDir(), SyncBytes: syncBytes})
					},
					Reopen: func(t testing.TB, s piece.Store) piece.Store {
						_ = s.Close()
						cfg, _ := configs.Load(s)
						return open(t, cfg.(diskstore.Config))
					},
				},
				Break: func(_ testing.TB, s piece.Store, f storetest.Fault) func() {
					v, _ := disks.Load(s)
					d := v.(*disk)
					d.fail(f)
					return func() { d.set(nil) }
				},
			})
		})
	}
}
