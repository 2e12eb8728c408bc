package diskstore

import "golang.org/x/sys/unix"

func allocate(fd int, size int64) error { return unix.Fallocate(fd, 0, 0, size) }

func datasync(fd int) error { return unix.Fdatasync(fd) }

// damageHere is what Linux alone says of damage: of metadata (ext4, XFS), of a device behind a network.
var damageHere = []unix.Errno{unix.EUCLEAN, unix.EREMOTEIO, unix.ENODATA}
