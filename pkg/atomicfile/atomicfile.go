// Package atomicfile replaces a file as a whole: every reader sees the old bytes or the new ones, also after a
// power cut.
//
// It never reports success before the bytes and the directory entry are on stable storage. A symbolic link at the
// path is replaced, not followed. Start at [Write].
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
)

// Write replaces the file at path, or creates it with mode 0600. The directory must exist.
func Write(path string, content []byte) error {
	return Replace(path, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// Replace is [Write] for content that fill writes. fill may also change the mode and the owner of the file, which
// starts empty, with mode 0600, under a temporary name in the directory of path. An error of fill leaves path as it
// was, and is returned unchanged.
func Replace(path string, fill func(*os.File) error) error {
	f, err := pending(path, fill)
	if err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	return syncDir(filepath.Dir(path))
}

// Create is [Replace] for a file that does not exist yet: the error is [fs.ErrExist] where path exists. Of several
// processes exactly one succeeds, except on a file system without hard links, where the last one wins.
func Create(path string, fill func(*os.File) error) error {
	f, err := pending(path, fill)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	switch err := os.Link(f.Name(), path); {
	case errors.Is(err, fs.ErrExist):
		return errors.Join(err, f.Cleanup())
	case err != nil:
		err = f.CloseAtomicallyReplace()
		return errors.Join(err, f.Cleanup(), syncDir(filepath.Dir(path)))
	}
	return errors.Join(f.Cleanup(), syncDir(filepath.Dir(path)))
}

// pending returns the temporary file with its content. It lies in the directory of path: the library's own choice
// may be $TMPDIR, which other users share.
func pending(path string, fill func(*os.File) error) (*renameio.PendingFile, error) {
	dir := renameio.WithTempDir(filepath.Dir(path))
	f, err := renameio.NewPendingFile(path, dir, renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nil, err
	}
	if err := fill(f.File); err != nil {
		return nil, errors.Join(err, f.Cleanup())
	}
	return f, nil
}

// syncDir makes a rename durable, which the library leaves out. A file system that cannot sync a directory reports
// EINVAL or "unsupported"; nothing better is available there.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
