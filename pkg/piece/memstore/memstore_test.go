package memstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Factory{
		New:       func(testing.TB) piece.Store { return memstore.New(memstore.Config{}) },
		WithQuota: func(_ testing.TB, q int64) piece.Store { return memstore.New(memstore.Config{Quota: q}) },
	})
}

func TestContractWithPool(t *testing.T) {
	pool := &memstore.Pool{}
	storetest.Run(t, storetest.Factory{
		New: func(testing.TB) piece.Store { return memstore.New(memstore.Config{Pool: pool}) },
		WithQuota: func(_ testing.TB, q int64) piece.Store {
			return memstore.New(memstore.Config{Quota: q, Pool: pool})
		},
	})
	assert.Zero(t, pool.Bytes(), "closed stores free their pieces")
}

// Stores with one pool hold an equal piece once.
func TestPool(t *testing.T) {
	pool := &memstore.Pool{}
	facts := piece.MetadataFor(1<<20, "")
	content := storetest.Content("a", facts.Length)
	var stores []*memstore.Store
	for range 20 {
		s := memstore.New(memstore.Config{Pool: pool})
		r, err := s.Create(storetest.ID("a"), facts)
		require.NoError(t, err)
		for i := range piece.Index(facts.Layout().Count()) {
			require.NoError(t, storetest.Write(r, content, i))
		}
		stores = append(stores, s)
	}
	assert.Equal(t, facts.Length, pool.Bytes())
	for _, s := range stores[1:] {
		require.NoError(t, s.Close())
	}
	r, err := stores[0].Open(storetest.ID("a"))
	require.NoError(t, err)
	assert.Equal(t, 8, storetest.Check(t, r, content))
	require.NoError(t, stores[0].Remove(storetest.ID("a")))
	assert.Zero(t, pool.Bytes())
}

// A store that writes wrong bytes under a digest does not affect the other stores of the pool.
func TestPoolWrongBytes(t *testing.T) {
	pool := &memstore.Pool{}
	facts := piece.Metadata{Length: 100, PieceSize: 100}
	good, bad := storetest.Content("good", 100), storetest.Content("bad", 100)
	a, err := memstore.New(memstore.Config{Pool: pool}).Create(storetest.ID("a"), facts)
	require.NoError(t, err)
	b, err := memstore.New(memstore.Config{Pool: pool}).Create(storetest.ID("a"), facts)
	require.NoError(t, err)
	require.NoError(t, a.WritePiece(0, bad, piece.Sum(good)), "a store verifies no digest")
	require.NoError(t, b.WritePiece(0, good, piece.Sum(good)))
	got := make([]byte, 100)
	_, err = b.ReadAt(got, 0)
	require.NoError(t, err)
	assert.Equal(t, good, got)
}

func BenchmarkWritePiece(b *testing.B) {
	for _, pool := range []*memstore.Pool{nil, {}} {
		b.Run(fmt.Sprintf("pool=%v", pool != nil), func(b *testing.B) {
			facts := piece.Metadata{Length: piece.SizeMax, PieceSize: piece.SizeMax}
			data := storetest.Content("a", facts.PieceSize)
			d := piece.Sum(data)
			b.SetBytes(facts.PieceSize)
			for b.Loop() {
				s := memstore.New(memstore.Config{Pool: pool})
				r, err := s.Create(storetest.ID("a"), facts)
				require.NoError(b, err)
				for i := range piece.Index(facts.Layout().Count()) {
					require.NoError(b, r.WritePiece(i, data, d))
				}
			}
		})
	}
}
