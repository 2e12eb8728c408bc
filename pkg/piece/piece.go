// Package piece defines the pieces of a task: their layout, their digests, sets of them, and the contract of a store
// that keeps them.
//
// The layout depends on the task's length alone, so that owners that never exchanged a message never cut the same task
// differently. Start at [Layout], [DigestRun] and [Store].
package piece

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// Bounds of the layout.
const (
	// SizeMin and SizeMax bound the piece size, in bytes.
	SizeMin = 128 << 10
	SizeMax = 4 << 20
	// CountMax bounds the number of pieces of one task, so that a layout from the network allocates at most 32 MiB of
	// digests.
	CountMax = 1 << 20
	// LengthMax is the longest task, in bytes.
	LengthMax = int64(CountMax) * SizeMax
	// targetCount is the highest number of pieces while they are smaller than SizeMax.
	targetCount = 512
)

// ErrInvalidMetadata reports an impossible length or layout.
var ErrInvalidMetadata = errors.New("invalid metadata")

// Index is the number of a piece, from 0.
type Index int

// Digest is the SHA-256 of one piece.
type Digest [sha256.Size]byte

// Sum returns the digest of the bytes of a piece.
func Sum(data []byte) Digest { return sha256.Sum256(data) }

func (d Digest) String() string { return fmt.Sprintf("sha256:%x", d[:]) }

// SizeFor returns the piece size of a task of length bytes: the smallest power of two that makes at most 512 pieces,
// within SizeMin and SizeMax.
func SizeFor(length int64) int64 {
	size := int64(SizeMin)
	for size < SizeMax && size*targetCount < length {
		size *= 2
	}
	return size
}

// Layout divides Length bytes into pieces of PieceSize bytes; the last one may be shorter. A task of no bytes has no
// pieces.
type Layout struct {
	Length, PieceSize int64
}

// Count is the number of pieces.
func (l Layout) Count() int {
	if l.Length <= 0 {
		return 0
	}
	return int((l.Length + l.PieceSize - 1) / l.PieceSize)
}

// Offset is the offset of the first byte of piece i.
func (l Layout) Offset(i Index) int64 { return int64(i) * l.PieceSize }

// Size is the length of piece i in bytes, 0 for a piece that does not exist.
func (l Layout) Size(i Index) int64 {
	if i < 0 || int(i) >= l.Count() {
		return 0
	}
	return min(l.PieceSize, l.Length-l.Offset(i))
}

// At returns the piece with the byte at offset.
func (l Layout) At(offset int64) Index { return Index(offset / l.PieceSize) }

// Span returns the pieces [first, end) with those of the bytes [offset, offset+n) that the task has; first and end are
// equal if it has none.
func (l Layout) Span(offset, n int64) (first, end Index) {
	offset = min(max(offset, 0), l.Length)
	n = min(n, l.Length-offset)
	if n <= 0 {
		return l.At(offset), l.At(offset)
	}
	return l.At(offset), l.At(offset+n-1) + 1
}

// Within returns an [ErrMissing] unless the task has all of the bytes [offset, offset+n).
func (l Layout) Within(offset, n int64) error {
	if offset < 0 || n < 0 || offset > l.Length-n {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, offset, l.Length, ErrMissing)
	}
	return nil
}

// Metadata is what a store must know of a task before it can keep the first piece.
type Metadata struct {
	Length    int64  `json:"length"`
	PieceSize int64  `json:"pieceSize"`
	MediaType string `json:"mediaType,omitempty"` // the origin's Content-Type, to the letter
}

// MetadataFor returns the metadata of a task of length bytes.
func MetadataFor(length int64, mediaType string) Metadata {
	return Metadata{Length: length, PieceSize: SizeFor(length), MediaType: mediaType}
}

// Layout returns the layout of the pieces.
func (m Metadata) Layout() Layout { return Layout{Length: m.Length, PieceSize: m.PieceSize} }

// Check rejects metadata that no honest owner sends. The error wraps [ErrInvalidMetadata].
func (m Metadata) Check() error {
	switch {
	case m.Length < 0 || m.Length > LengthMax:
		return fmt.Errorf("%w: length %d", ErrInvalidMetadata, m.Length)
	case m.PieceSize < 1 || m.PieceSize > SizeMax:
		return fmt.Errorf("%w: piece size %d", ErrInvalidMetadata, m.PieceSize)
	case m.Layout().Count() > CountMax:
		return fmt.Errorf("%w: %d pieces", ErrInvalidMetadata, m.Layout().Count())
	case len(m.MediaType) > 255:
		return fmt.Errorf("%w: media type of %d bytes", ErrInvalidMetadata, len(m.MediaType))
	}
	return nil
}

// DigestError reports a piece whose bytes do not match its digest.
type DigestError struct {
	Index     Index
	Want, Got Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("piece %d has digest %s, want %s", e.Index, e.Got, e.Want)
}
