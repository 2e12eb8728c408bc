package piece

import "io"

// Spool keeps a body of unknown length until its end. It has no name on a disk, so that nothing of it outlives the
// process. Not safe for concurrent use.
type Spool interface {
	// Write appends p. With [ErrNoSpace] it kept nothing of p, and the same p may be written again after an eviction;
	// [ErrSpoolFull] is permanent.
	io.Writer
	// Len is the number of bytes written.
	Len() int64
	// Reader reads all bytes written.
	Reader() io.Reader
	// Close frees the space. Closing twice is no error.
	Close() error
}

// Spooler is a [Store] with spools, whose space counts against its quota.
type Spooler interface {
	// Spool returns an empty spool. The caller closes it.
	Spool() (Spool, error)
}
