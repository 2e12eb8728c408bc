//go:build unix && !linux

package diskstore

import (
	"errors"

	"golang.org/x/sys/unix"
)

func allocate(int, int64) error { return errors.ErrUnsupported }

func datasync(fd int) error { return unix.Fsync(fd) }

var damageHere []unix.Errno
