package diskstore

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"
)

// errorKind is the meaning of an error for the task whose files it concerns.
type errorKind int

const (
	// kept: the files may become usable, or are usable for another user, so they stay on the disk.
	kept errorKind = iota
	// busy: this process lacks a resource temporarily; the task is unchanged.
	busy
	// newer: a newer version wrote the task.
	newer
	// lost: the disk cannot read the task, or the files are no task.
	lost
)

// errNotFile means that something other than a file is in the place of a task's file.
var errNotFile = errors.New("it is no regular file")

// kindOf returns the meaning of an error of a task's files.
func kindOf(err error) errorKind {
	switch {
	case errors.Is(err, errNewer):
		return newer
	case errors.Is(err, errDamaged), errors.Is(err, errNotFile), errors.Is(err, errUnwritable),
		errors.Is(err, fs.ErrNotExist), isDamage(err):
		return lost
	case isOneOf(err, []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR, syscall.ENOBUFS,
	}):
		return busy
	}
	return kept
}

// damage lists the errors of a disk or file system for one damaged file, and of a file or directory that is in the
// wrong place. Other files may be good.
var damage = append([]syscall.Errno{
	syscall.EIO, syscall.EBADMSG, syscall.ENXIO, syscall.ENODEV, syscall.EOVERFLOW, syscall.EILSEQ,
	syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP,
}, damageHere...)

// isDamage reports whether an error means damage.
func isDamage(err error) bool { return isOneOf(err, damage) }

func isOneOf(err error, list []syscall.Errno) bool {
	return slices.ContainsFunc(list, func(e syscall.Errno) bool { return errors.Is(err, e) })
}
