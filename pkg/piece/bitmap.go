package piece

import "math/bits"

// Bitmap is a set of pieces of one task. The zero value is the set over no pieces. Copies share their bits; see
// [Bitmap.Clone]. Not safe for concurrent use.
type Bitmap struct {
	n     int
	words []uint64
}

// NewBitmap returns the empty set over n pieces.
func NewBitmap(n int) Bitmap {
	return Bitmap{n: n, words: make([]uint64, (n+63)/64)}
}

// Len is the number of pieces of the task, not the number in the set.
func (b Bitmap) Len() int { return b.n }

// Has reports whether i is in the set. An index outside of it never is.
func (b Bitmap) Has(i Index) bool {
	return i >= 0 && int(i) < b.n && b.words[i/64]&(1<<(uint(i)%64)) != 0
}

// Set adds i and reports whether it was missing. It ignores an index outside of the set.
func (b Bitmap) Set(i Index) bool {
	if i < 0 || int(i) >= b.n || b.Has(i) {
		return false
	}
	b.words[i/64] |= 1 << (uint(i) % 64)
	return true
}

// Clear removes i.
func (b Bitmap) Clear(i Index) {
	if i >= 0 && int(i) < b.n {
		b.words[i/64] &^= 1 << (uint(i) % 64)
	}
}

// Add adds the pieces of another set of the same length.
func (b Bitmap) Add(other Bitmap) {
	for i, w := range other.words[:len(b.words)] {
		b.words[i] |= w
	}
}

// SetAll adds every piece.
func (b Bitmap) SetAll() {
	for i := range b.words {
		b.words[i] = ^uint64(0)
	}
	if tail := uint(b.n) % 64; tail != 0 {
		b.words[len(b.words)-1] = 1<<tail - 1
	}
}

// Count is the number of pieces in the set.
func (b Bitmap) Count() int {
	sum := 0
	for _, w := range b.words {
		sum += bits.OnesCount64(w)
	}
	return sum
}

// Full reports whether every piece is in the set. A set over no pieces is full.
func (b Bitmap) Full() bool { return b.Count() == b.n }

// Words returns the bits, 64 pieces a word, piece 0 lowest, for set arithmetic in a hot path. The bits beyond Len are
// zero. The caller must not change them.
func (b Bitmap) Words() []uint64 { return b.words }

// Clone returns a copy that shares nothing.
func (b Bitmap) Clone() Bitmap {
	return Bitmap{n: b.n, words: append([]uint64(nil), b.words...)}
}

// NextMissing returns the first piece at or after i that is not in the set, or Len.
func (b Bitmap) NextMissing(i Index) Index {
	i = max(i, 0)
	for int(i) < b.n {
		w := ^b.words[i/64] >> (uint(i) % 64)
		if w != 0 {
			return min(i+Index(bits.TrailingZeros64(w)), Index(b.n))
		}
		i = (i/64 + 1) * 64
	}
	return Index(b.n)
}

// Bytes returns the set as a bitfield of BEP 3: piece 0 is the highest bit of the first byte.
func (b Bitmap) Bytes() []byte {
	out := make([]byte, (b.n+7)/8)
	for i := range b.n {
		if b.Has(Index(i)) {
			out[i/8] |= 0x80 >> (i % 8)
		}
	}
	return out
}

// BitmapFromBools returns the set over n pieces with those of a BEP 3 bitfield. It ignores bits beyond n.
func BitmapFromBools(n int, bools []bool) Bitmap {
	b := NewBitmap(n)
	for i, has := range bools[:min(n, len(bools))] {
		if has {
			b.Set(Index(i))
		}
	}
	return b
}
