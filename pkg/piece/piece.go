// Package piece says which part of a content is meant: layout, digests, who has what, and
// the contract of a store that keeps pieces.
//
// The layout is a function of the length alone, so that owners who never met cut the same
// content alike. Start at [Layout], [DigestRun] and [Store].
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
	// CountMax bounds the number of pieces of one content: a layout that came from the
	// network allocates at most this many digests (32 MiB).
	CountMax = 1 << 20
	// LengthMax is the longest content, in bytes.
	LengthMax = int64(CountMax) * SizeMax
	// targetCount is how many pieces a content is cut into, at most, while its pieces
	// are smaller than SizeMax.
	targetCount = 512
)

// ErrInvalidMetadata tells that a layout or its length is impossible.
var ErrInvalidMetadata = errors.New("invalid content facts")

// Index is the number of a piece, from 0.
type Index int

// Digest is the SHA-256 of one piece.
type Digest [sha256.Size]byte

// Sum returns the digest of a piece's bytes.
func Sum(data []byte) Digest { return sha256.Sum256(data) }

func (d Digest) String() string { return fmt.Sprintf("sha256:%x", d[:]) }

// SizeFor is the piece size for a content of length bytes: the power of two that makes at
// most 512 pieces, within SizeMin and SizeMax.
func SizeFor(length int64) int64 {
	size := int64(SizeMin)
	for size < SizeMax && size*targetCount < length {
		size *= 2
	}
	return size
}

// Layout cuts a content into pieces of PieceSize bytes; the last one may be shorter.
// An empty content has no pieces.
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

// Offset is where piece i begins in the content.
func (l Layout) Offset(i Index) int64 { return int64(i) * l.PieceSize }

// Size is the length of piece i in bytes, 0 for a piece that the content does not have.
func (l Layout) Size(i Index) int64 {
	if i < 0 || int(i) >= l.Count() {
		return 0
	}
	return min(l.PieceSize, l.Length-l.Offset(i))
}

// At is the piece that holds the byte at offset.
func (l Layout) At(offset int64) Index { return Index(offset / l.PieceSize) }

// Span returns the pieces [first, end) that hold the bytes [offset, offset+n), as far as
// the content has them; first and end are equal when it has none.
func (l Layout) Span(offset, n int64) (first, end Index) {
	offset = min(max(offset, 0), l.Length)
	n = min(n, l.Length-offset)
	if n <= 0 {
		return l.At(offset), l.At(offset)
	}
	return l.At(offset), l.At(offset+n-1) + 1
}

// Within returns an [ErrMissing] unless the content has all of the bytes [offset, offset+n).
func (l Layout) Within(offset, n int64) error {
	if offset < 0 || n < 0 || offset > l.Length-n {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, offset, l.Length, ErrMissing)
	}
	return nil
}

// Metadata are what must be known of a content before its first piece can be stored.
type Metadata struct {
	Length    int64  `json:"length"`
	PieceSize int64  `json:"pieceSize"`
	MediaType string `json:"mediaType,omitempty"` // the origin's Content-Type, to the letter
}

// MetadataFor returns the facts of a content of length bytes.
func MetadataFor(length int64, mediaType string) Metadata {
	return Metadata{Length: length, PieceSize: SizeFor(length), MediaType: mediaType}
}

// Layout returns how the content is cut.
func (f Metadata) Layout() Layout { return Layout{Length: f.Length, PieceSize: f.PieceSize} }

// Check refuses facts that no honest owner sends. The error wraps [ErrInvalidMetadata].
func (f Metadata) Check() error {
	switch {
	case f.Length < 0 || f.Length > LengthMax:
		return fmt.Errorf("%w: length %d", ErrInvalidMetadata, f.Length)
	case f.PieceSize < 1 || f.PieceSize > SizeMax:
		return fmt.Errorf("%w: piece size %d", ErrInvalidMetadata, f.PieceSize)
	case f.Layout().Count() > CountMax:
		return fmt.Errorf("%w: %d pieces", ErrInvalidMetadata, f.Layout().Count())
	case len(f.MediaType) > 255:
		return fmt.Errorf("%w: media type of %d bytes", ErrInvalidMetadata, len(f.MediaType))
	}
	return nil
}

// DigestError says which piece, from whom, has the wrong bytes.
type DigestError struct {
	Index     Index
	Want, Got Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("piece %d has digest %s, want %s", e.Index, e.Got, e.Want)
}
