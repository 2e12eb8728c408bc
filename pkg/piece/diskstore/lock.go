package diskstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another process uses the directory.
var ErrInUse = errors.New("directory is in use")

// Free implements [FS].
func (OS) Free(name string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// lockDir locks the directory for this process until the file is closed or the process ends. The lock is flock's,
// which the kernel always releases; the process ID in the file is only for the error of other processes.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		holder := "another process"
		line := make([]byte, 20)
		n, _ := f.ReadAt(line, 0) // best effort
		if pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n]))); err == nil {
			holder = fmt.Sprintf("process %d", pid)
		}
		err = fmt.Errorf("%w: %s uses %s: stop it, or give this process a directory of its own", ErrInUse, holder, dir)
		return nil, errors.Join(err, f.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("locking %s: %w", f.Name(), err), f.Close())
	}
	// Best effort: the process ID is for people.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// unlockDir unlocks the directory, even if a child that is just being forked has a copy of the descriptor.
func unlockDir(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_UN)
	return errors.Join(err, f.Close())
}
