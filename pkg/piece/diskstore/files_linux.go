package diskstore

import "golang.org/x/sys/unix"

func allocate(fd int, size int64) error { return unix.Fallocate(fd, 0, 0, size) }

func datasync(fd int) error { return unix.Fdatasync(fd) }

func syncFS(fd int) error { return unix.Syncfs(fd) }

// damageHere lists the errors of damage that only Linux has: of metadata (ext4, XFS), and of a remote device.
var damageHere = []unix.Errno{unix.EUCLEAN, unix.EREMOTEIO, unix.ENODATA}
