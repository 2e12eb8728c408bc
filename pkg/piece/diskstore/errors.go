package diskstore

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"
)

// verdict is what an error means for the task whose files gave it.
type verdict int

const (
	// kept: its files may be good again, or good for another user: they stay where they are.
	kept verdict = iota
	// busy: this process lacks something for a moment, and the task is as it was.
	busy
	// newer: a newer version wrote it.
	newer
	// lost: the disk does not give it back, or it is none.
	lost
)

// judge tells what an error of a task's files means.
func judge(err error) verdict {
	switch {
	case errors.Is(err, errNewer):
		return newer
	case errors.Is(err, errDamaged), errors.Is(err, errSick), errors.Is(err, fs.ErrNotExist), faulty(err):
		return lost
	case isOne(err, []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS}):
		return busy
	}
	return kept
}

// damage is what a disk says, or the file system of its own data, where a file cannot be read or
// written, and of what lies in a file's place. Other files need not be concerned.
var damage = append([]syscall.Errno{
	syscall.EIO, syscall.EBADMSG, syscall.ENXIO, syscall.ENODEV, syscall.EOVERFLOW, syscall.EILSEQ,
	syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP,
}, damageHere...)

// faulty tells whether an error is of damage.
func faulty(err error) bool { return isOne(err, damage) }

func isOne(err error, list []syscall.Errno) bool {
	return slices.ContainsFunc(list, func(e syscall.Errno) bool { return errors.Is(err, e) })
}
