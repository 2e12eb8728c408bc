package piece

import "io"

// Spool keeps a body whose length nobody knows until its end tells it. It has no name on a disk,
// so nothing of it outlives its process, in whatever way that ends. One goroutine uses it.
type Spool interface {
	// Write appends p. Where it fails with [ErrNoSpace] nothing of p was kept, and the same p may
	// be written again once there is room; with [ErrSpoolFull] there never will be.
	io.Writer
	// Len is how many bytes were written.
	Len() int64
	// Reader reads from the first byte to the last that was written.
	Reader() io.Reader
	// Close gives back the room; closing twice is no error.
	Close() error
}

// Spooler is a [Store] that keeps spools, and counts what they take.
type Spooler interface {
	// Spool returns an empty spool. The caller closes it.
	Spool() (Spool, error)
}
