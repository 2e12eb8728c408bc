package piece_test

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// seeded returns a random source whose seed stands in the log of a test that fails.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestSizeFor(t *testing.T) {
	const kib, mib, gib = int64(1) << 10, int64(1) << 20, int64(1) << 30
	for _, c := range []struct {
		length, size int64
		count        int
	}{
		{0, 128 * kib, 0},
		{1, 128 * kib, 1},
		{128 * kib, 128 * kib, 1},
		{128*kib + 1, 128 * kib, 2},
		{64 * mib, 128 * kib, 512},
		{64*mib + 1, 256 * kib, 257},
		{200 * mib, 512 * kib, 400},
		{512 * mib, mib, 512},
		{gib, 2 * mib, 512},
		{2 * gib, 4 * mib, 512},
		{2*gib + 1, 4 * mib, 513},
		{100 * gib, 4 * mib, 25600},
		{piece.LengthMax, 4 * mib, piece.CountMax},
	} {
		assert.Equal(t, c.size, piece.SizeFor(c.length), "piece size for %d bytes", c.length)
		f := piece.MetadataFor(c.length, "application/octet-stream")
		assert.Equal(t, c.count, f.Layout().Count(), "pieces of %d bytes", c.length)
		assert.NoError(t, f.Check(), "facts for %d bytes", c.length)
	}
	r := seeded(t)
	for range 1000 {
		length := r.Int64N(piece.LengthMax) >> r.IntN(40)
		size := piece.SizeFor(length)
		assert.Equal(t, 1, bits.OnesCount64(uint64(size)), "size %d for %d bytes", size, length)
		assert.GreaterOrEqual(t, size, int64(piece.SizeMin))
		assert.LessOrEqual(t, size, int64(piece.SizeMax))
	}
}

func TestLayoutCoversAllBytes(t *testing.T) {
	r := seeded(t)
	for range 500 {
		l := piece.Layout{Length: r.Int64N(5000), PieceSize: 1 + r.Int64N(300)}
		at := int64(0)
		for i := range piece.Index(l.Count()) {
			require.Equal(t, at, l.Offset(i), "%+v piece %d", l, i)
			require.Positive(t, l.Size(i), "%+v piece %d", l, i)
			require.LessOrEqual(t, l.Size(i), l.PieceSize)
			require.Equal(t, i, l.At(at), "first byte of piece %d of %+v", i, l)
			require.Equal(t, i, l.At(at+l.Size(i)-1), "last byte of piece %d of %+v", i, l)
			at += l.Size(i)
		}
		require.Equal(t, l.Length, at, "%+v", l)
	}
}

func TestSizeOutsideOfTask(t *testing.T) {
	l := piece.Layout{Length: 250, PieceSize: 100}
	assert.Equal(t, int64(50), l.Size(2))
	for _, i := range []piece.Index{-1, 3, 4, math.MaxInt32} {
		assert.Zero(t, l.Size(i), "piece %d", i)
	}
	assert.Zero(t, piece.Layout{PieceSize: 100}.Size(0))
}

func TestSpan(t *testing.T) {
	r := seeded(t)
	for range 2000 {
		l := piece.Layout{Length: r.Int64N(2000), PieceSize: 1 + r.Int64N(300)}
		off, n := r.Int64N(2200), r.Int64N(2200)
		want := map[piece.Index]bool{}
		for b := off; b < min(off+n, l.Length); b++ {
			want[l.At(b)] = true
		}
		first, end := l.Span(off, n)
		require.Len(t, want, int(end-first), "%+v bytes [%d, %d)", l, off, off+n)
		for i := first; i < end; i++ {
			require.True(t, want[i], "%+v bytes [%d, %d): piece %d", l, off, off+n, i)
		}
	}
	l := piece.Layout{Length: 250, PieceSize: 100}
	first, end := l.Span(110, math.MaxInt64)
	assert.Equal(t, [2]piece.Index{1, 3}, [2]piece.Index{first, end}, "a length that would overflow")
}

func TestWithin(t *testing.T) {
	l := piece.Layout{Length: 1000, PieceSize: 256}
	for _, w := range [][2]int64{{0, 0}, {0, 1000}, {999, 1}, {1000, 0}, {256, 512}} {
		assert.NoError(t, l.Within(w[0], w[1]), "%v", w)
	}
	for _, w := range [][2]int64{{0, 1001}, {1000, 1}, {1001, 0}, {-1, 1}, {5, -1}, {math.MaxInt64, 1},
		{1, math.MaxInt64},
		{math.MaxInt64, math.MaxInt64}} {
		assert.ErrorIs(t, l.Within(w[0], w[1]), piece.ErrMissing, "%v", w)
	}
}

func TestMetadataCheck(t *testing.T) {
	good := piece.MetadataFor(1<<20, "text/plain")
	require.NoError(t, good.Check())
	for name, f := range map[string]piece.Metadata{
		"negative length":  {Length: -1, PieceSize: piece.SizeMin},
		"too long":         {Length: piece.LengthMax + 1, PieceSize: piece.SizeMax},
		"no piece size":    {Length: 1},
		"negative pieces":  {Length: 1, PieceSize: -1},
		"too large pieces": {Length: 1, PieceSize: piece.SizeMax + 1},
		"too many pieces":  {Length: piece.CountMax + 1, PieceSize: 1},
		"long media type":  {Length: 1, PieceSize: 1, MediaType: string(make([]byte, 256))},
		"overflow":         {Length: math.MaxInt64, PieceSize: piece.SizeMax},
	} {
		assert.ErrorIs(t, f.Check(), piece.ErrInvalidMetadata, name)
	}
}

func TestBitmap(t *testing.T) {
	r := seeded(t)
	for range 300 {
		n := r.IntN(200)
		b, model := piece.NewBitmap(n), map[piece.Index]bool{}
		for range r.IntN(400) {
			i := piece.Index(r.IntN(n+20) - 10)
			inside := i >= 0 && int(i) < n
			if r.IntN(3) > 0 {
				require.Equal(t, inside && !model[i], b.Set(i), "n %d, Set(%d)", n, i)
				if inside {
					model[i] = true
				}
			} else {
				b.Clear(i)
				delete(model, i)
			}
		}
		require.Equal(t, n, b.Len())
		require.Equal(t, len(model), b.Count())
		require.Equal(t, len(model) == n, b.Full())
		for i := piece.Index(-70); int(i) < n+70; i++ {
			require.Equal(t, model[i], b.Has(i), "n %d, Has(%d)", n, i)
			next := max(i, 0)
			for int(next) < n && model[next] {
				next++
			}
			require.Equal(t, min(next, piece.Index(n)), b.NextMissing(i), "n %d, NextMissing(%d)", n, i)
		}
		sum := 0
		for _, w := range b.Words() {
			sum += bits.OnesCount64(w)
		}
		require.Equal(t, len(model), sum, "bits beyond Len are zero")
	}
}

func TestBitmapBEP3(t *testing.T) {
	r := seeded(t)
	for range 300 {
		n := r.IntN(200)
		b := piece.NewBitmap(n)
		for range r.IntN(2*n + 1) {
			b.Set(piece.Index(r.IntN(n)))
		}
		wire := b.Bytes()
		require.Len(t, wire, (n+7)/8)
		bools := make([]bool, 0, len(wire)*8)
		for _, octet := range wire { // BEP 3: the high bit of the first byte is piece 0
			for bit := 7; bit >= 0; bit-- {
				bools = append(bools, octet>>bit&1 == 1)
			}
		}
		require.Equal(t, b, piece.BitmapFromBools(n, bools))
		for _, spare := range bools[n:] {
			require.False(t, spare, "spare bits are zero")
		}
	}
	long := piece.BitmapFromBools(3, []bool{true, false, true, true, true})
	assert.Equal(t, 2, long.Count(), "what is said beyond n is dropped")
	assert.Equal(t, 1, piece.BitmapFromBools(3, []bool{false, true}).Count(), "what is not said is missing")
}

func TestSetAll(t *testing.T) {
	for _, n := range []int{0, 1, 63, 64, 65, 128, 130} {
		b := piece.NewBitmap(n)
		b.SetAll()
		assert.Equal(t, n, b.Count(), "n %d", n)
		assert.True(t, b.Full(), "n %d", n)
		assert.Equal(t, piece.Index(n), b.NextMissing(0), "n %d", n)
	}
	var zero piece.Bitmap
	assert.True(t, zero.Full())
	assert.False(t, zero.Set(0))
	assert.Empty(t, zero.Bytes())
}

func TestClone(t *testing.T) {
	a := piece.NewBitmap(10)
	b := a.Clone()
	a.Set(3)
	assert.False(t, b.Has(3))
}

func TestDigestRunCheck(t *testing.T) {
	f := piece.Metadata{Length: 950, PieceSize: 100} // ten pieces
	run := func(first, n int, final bool) piece.DigestRun {
		return piece.DigestRun{Metadata: f, First: piece.Index(first), Digests: make([]piece.Digest, n), Final: final}
	}
	for name, r := range map[string]piece.DigestRun{
		"begin":          run(0, 9, false),
		"middle":         run(4, 1, false),
		"all":            run(0, 10, true),
		"last":           run(9, 1, true),
		"empty, at end":  run(10, 0, true),
		"facts only":     run(0, 0, false),
		"empty content":  {Metadata: piece.Metadata{PieceSize: 100}, Final: true},
		"final reprised": run(0, 5, true),
	} {
		assert.NoError(t, r.Check(), name)
	}
	for name, r := range map[string]piece.DigestRun{
		"before the begin":     run(-1, 2, false),
		"behind the end":       run(11, 0, true),
		"over the end":         run(5, 6, true),
		"far away":             run(math.MaxInt, 1, true),
		"last piece not final": run(8, 2, false),
		"all, not final":       run(0, 10, false),
		"no facts":             {},
	} {
		assert.ErrorIs(t, r.Check(), piece.ErrInvalidMetadata, name)
	}
}

func TestSigningBytes(t *testing.T) {
	const id = task.ID("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	base := piece.DigestRun{
		Metadata: piece.Metadata{Length: 1000, PieceSize: 100, MediaType: "ab"},
		Epoch:    7,
		First:    2,
		Digests:  []piece.Digest{piece.Sum([]byte("x")), piece.Sum([]byte("y"))},
	}
	with := func(change func(*piece.DigestRun)) piece.DigestRun {
		r := base
		r.Digests = append([]piece.Digest(nil), base.Digests...)
		change(&r)
		return r
	}
	seen := map[string]string{string(base.SigningBytes(id)): "base"}
	different := func(name string, b []byte) {
		t.Helper()
		other, clash := seen[string(b)]
		assert.False(t, clash, "%s signs the same bytes as %s", name, other)
		seen[string(b)] = name
	}
	different("other task", base.SigningBytes("file:"+id[len("sha256:"):]))
	different("length", with(func(r *piece.DigestRun) { r.Metadata.Length++ }).SigningBytes(id))
	different("piece size", with(func(r *piece.DigestRun) { r.Metadata.PieceSize++ }).SigningBytes(id))
	different("media type", with(func(r *piece.DigestRun) { r.Metadata.MediaType = "ac" }).SigningBytes(id))
	different("longer media type", with(func(r *piece.DigestRun) { r.Metadata.MediaType = "ab\x00" }).SigningBytes(id))
	different("epoch", with(func(r *piece.DigestRun) { r.Epoch++ }).SigningBytes(id))
	different("first", with(func(r *piece.DigestRun) { r.First++ }).SigningBytes(id))
	different("digest", with(func(r *piece.DigestRun) { r.Digests[1][31] ^= 1 }).SigningBytes(id))
	different("order",
		with(func(r *piece.DigestRun) { r.Digests[0], r.Digests[1] = r.Digests[1], r.Digests[0] }).SigningBytes(id))
	different("fewer digests", with(func(r *piece.DigestRun) { r.Digests = r.Digests[:1] }).SigningBytes(id))
	different("final", with(func(r *piece.DigestRun) { r.Final = true }).SigningBytes(id))
	different("revocation", piece.Revocation{Epoch: 7}.SigningBytes(id))
	different("revocation of another epoch", piece.Revocation{Epoch: 8}.SigningBytes(id))
	different("revocation of another task", piece.Revocation{Epoch: 7}.SigningBytes("file:"+id[len("sha256:"):]))

	signed := with(func(r *piece.DigestRun) { r.Key, r.Signature = piece.KeyID{1}, []byte{2} })
	assert.Equal(t, base.SigningBytes(id), signed.SigningBytes(id), "key and signature are not under the signature")
}
