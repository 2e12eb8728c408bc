//go:build unix && !linux

package diskstore

import (
	"errors"

	"golang.org/x/sys/unix"
)

func allocate(int, int64) error { return errors.ErrUnsupported }

func datasync(fd int) error { return unix.Fsync(fd) }

func syncFS(int) error { return errors.ErrUnsupported }

var damageHere []unix.Errno
