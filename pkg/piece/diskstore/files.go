package diskstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// FS is the file layer: every disk operation of a store except the lock. [OS] is the real one; tests inject faults.
type FS interface {
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// MkdirAll creates a directory and its parents; an existing one is no error.
	MkdirAll(name string, perm fs.FileMode) error
	Rename(from, to string) error
	RemoveAll(name string) error
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// Chtimes sets the modification time of a file.
	Chtimes(name string, modified time.Time) error
	// Allocate makes f size bytes long, and allocates all its blocks if the file system can.
	Allocate(f File, size int64) error
	// Datasync returns when all bytes written to f are on stable storage.
	Datasync(f File) error
	// SyncDir returns when the entries of a directory are on stable storage.
	SyncDir(name string) error
	// SyncAll returns when all that was written to the file system of f is on stable storage. It reports each failed
	// write to that file system since f was opened or synced so before. [errors.ErrUnsupported]: it cannot.
	SyncAll(f *os.File) error
	// Free returns the free bytes of the file system of name for this user.
	Free(name string) (int64, error)
}

// File is an open file. [OS] returns an *os.File, so that the kernel can move its bytes to a socket.
type File interface {
	io.ReadSeekCloser
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// OS is the file layer of the operating system.
type OS struct{}

// OpenFile implements [FS].
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // f would be a non-nil File with a nil *os.File
	}
	return f, nil
}

// MkdirAll implements [FS].
func (OS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }

// Rename implements [FS].
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// RemoveAll implements [FS].
func (OS) RemoveAll(name string) error { return os.RemoveAll(name) }

// ReadDir implements [FS].
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat implements [FS].
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// Chtimes implements [FS].
func (OS) Chtimes(name string, modified time.Time) error {
	return os.Chtimes(name, time.Time{}, modified)
}

// Allocate implements [FS].
func (OS) Allocate(f File, size int64) error {
	if size == 0 {
		return nil
	}
	err := withFD(f, func(fd int) error { return allocate(fd, size) })
	if errors.Is(err, errors.ErrUnsupported) {
		return f.Truncate(size)
	}
	return err
}

// Datasync implements [FS].
func (OS) Datasync(f File) error { return withFD(f, datasync) }

// SyncDir implements [FS].
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SyncAll implements [FS].
func (OS) SyncAll(f *os.File) error { return withFD(f, syncFS) }

// withFD calls do with the descriptor of a file, and keeps the file open meanwhile.
func withFD(f File, do func(fd int) error) error {
	conn, err := f.(*os.File).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = do(int(fd)); !errors.Is(failed, syscall.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, failed)
}

// diskFull reports whether an error means that the disk is full.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Remedy adds to an error of a directory what an operator can do about it.
func Remedy(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: user %d may not use it: give %s and all in it to that user (chown -R), "+
			"or name another directory", err, os.Geteuid(), dir)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the file system of %s is read-only: mount it writable, or name another directory "+
			"(after a disk error the kernel makes a file system read-only: see dmesg)", err, dir)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EEXIST):
		return fmt.Errorf("%w: a file is in the way at %s: name a directory of the store's own", err, dir)
	case diskFull(err):
		return fmt.Errorf("%w: the disk is full: free some space or inodes on the file system of %s, "+
			"or name another directory", err, dir)
	}
	return err
}
