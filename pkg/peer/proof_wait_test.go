package peer

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// gate lets one call after the other pass, and reports the arrival of each.
type gate struct{ came, let chan struct{} }

func newGate() gate { return gate{make(chan struct{}), make(chan struct{})} }

func (g gate) pass() {
	g.came <- struct{}{}
	<-g.let
}

// deliberate is a verifier that waits in the runs of one epoch.
type deliberate struct {
	credulous
	gate
	epoch uint64
}

func (v deliberate) VerifyRun(_ task.ID, r piece.DigestRun) error {
	if r.Epoch == v.epoch {
		v.pass()
	}
	return nil
}

// sluggish is a store that waits while it makes a replica; its replicas wait while they keep runs.
type sluggish struct {
	piece.Store
	create, keep gate
}

func (s sluggish) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	s.create.pass()
	r, err := s.Store.Create(id, f)
	return sluggishReplica{r, s.keep}, err
}

type sluggishReplica struct {
	piece.Replica
	keep gate
}

func (r sluggishReplica) AddRuns(runs []piece.DigestRun, certs [][]byte) error {
	r.keep.pass()
	return r.Replica.AddRuns(runs, certs)
}

// answers makes all calls of a download's loop to a proof.
func answers(t *testing.T, p *proof) {
	t.Helper()
	returns(t, "reading the proof", func() {
		p.digest(0)
		p.runFor(0)
		p.any()
		p.coversAll()
		p.knownSet()
		p.epochs()
		p.certificate(piece.KeyID{1})
		p.concerns(77)
	})
}

// result is what add returned.
type result struct {
	numbers []int
	err     error
}

// adding adds runs from another goroutine.
func adding(p *proof, runs ...piece.DigestRun) <-chan result {
	out := make(chan result, 1)
	go func() {
		numbers, err := p.add(runs, [][]byte{[]byte("certificate")})
		out <- result{numbers, err}
	}()
	return out
}

func TestTheProofAnswersWhileItIsWrittenTo(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	slow, quick := runAt(f, 1, 0, digestOf(0)), runAt(f, 2, 1, digestOf(1))
	t.Run("while a signature is checked", func(t *testing.T) {
		v := deliberate{gate: newGate(), epoch: slow.Epoch}
		p := newProof(proofTask, memstore.New(memstore.Config{}), v, nil)
		first := adding(p, slow)
		<-v.came
		answers(t, p)
		returns(t, "adding another run", func() {
			numbers, err := p.add([]piece.DigestRun{quick}, nil)
			require.NoError(t, err)
			assert.Equal(t, []int{0}, numbers)
		})
		_, known := p.digest(0)
		assert.False(t, known, "it was not verified yet")
		v.let <- struct{}{}
		assert.Equal(t, result{numbers: []int{1}}, <-first)
		d, _ := p.digest(0)
		assert.Equal(t, digestOf(0), d)
	})
	t.Run("while the store makes room and writes", func(t *testing.T) {
		s := sluggish{memstore.New(memstore.Config{}), newGate(), newGate()}
		p := newProof(proofTask, s, credulous{}, nil)
		first := adding(p, slow)
		<-s.create.came
		answers(t, p)
		second := adding(p, quick) // it waits for the facts, and makes no second replica
		s.create.let <- struct{}{}
		<-s.keep.came
		<-s.keep.came
		answers(t, p)
		returns(t, "facts that are known", func() { require.NoError(t, p.setMetadata(f)) })
		assert.Equal(t, -1, p.runFor(0), "what is not on the disk yet is not passed on")
		s.keep.let <- struct{}{}
		s.keep.let <- struct{}{}
		for _, r := range []result{<-first, <-second} {
			require.NoError(t, r.err)
		}
		kept, _ := p.replica.Runs()
		assert.Len(t, kept, 2)
	})
	t.Run("one run that two bring at once is entered once", func(t *testing.T) {
		v := deliberate{gate: newGate(), epoch: slow.Epoch}
		p := newProof(proofTask, memstore.New(memstore.Config{}), v, nil)
		first, second := adding(p, slow), adding(p, slow)
		<-v.came
		<-v.came
		v.let <- struct{}{}
		v.let <- struct{}{}
		assert.Equal(t, result{numbers: []int{0}}, <-first)
		assert.Equal(t, result{numbers: []int{0}}, <-second)
		assert.Equal(t, []uint64{slow.Epoch}, p.epochs())
	})
	t.Run("what is revoked while it is checked is left out", func(t *testing.T) {
		v := deliberate{gate: newGate(), epoch: slow.Epoch}
		p := newProof(proofTask, memstore.New(memstore.Config{}), v, nil)
		first := adding(p, slow, quick)
		<-v.came
		returns(t, "revoking", func() { assert.False(t, p.concerns(slow.Epoch)) })
		v.let <- struct{}{}
		got := <-first
		var stale *staleError
		require.ErrorAs(t, got.err, &stale, "a host that still trusts it gets the revocation")
		assert.Equal(t, slow.Epoch, stale.epoch)
		assert.Equal(t, []int{0}, got.numbers, "the other one is good")
		assert.Equal(t, []uint64{quick.Epoch}, p.epochs())
	})
	t.Run("a contradiction that comes in while it is checked is noticed", func(t *testing.T) {
		v := deliberate{gate: newGate(), epoch: 4}
		p := newProof(proofTask, memstore.New(memstore.Config{}), v, nil)
		whole := adding(p, runAt(f, 4, 0, digestOf(0), digestOf(8), digestOf(2)))
		<-v.came
		returns(t, "adding another run", func() {
			_, err := p.add([]piece.DigestRun{quick}, nil)
			require.NoError(t, err)
		})
		v.let <- struct{}{}
		require.ErrorIs(t, (<-whole).err, errContradiction)
	})
}

func TestAnotherLengthInOneMessageIsJudgedByTheNewest(t *testing.T) {
	short, long := piece.MetadataFor(3*piece.SizeMin, ""), piece.MetadataFor(4*piece.SizeMin, "")
	p := newProof(proofTask, memstore.New(memstore.Config{}), credulous{}, nil)
	numbers, err := p.add([]piece.DigestRun{runAt(short, 5, 0, digestOf(0)), runAt(long, 4, 0)}, nil)
	require.ErrorIs(t, err, errMetadata)
	require.NotErrorIs(t, err, errContradiction, "an older attempt says so")
	assert.Equal(t, []int{0}, numbers)
	_, err = p.add([]piece.DigestRun{runAt(short, 5, 1, digestOf(1)), runAt(long, 6, 0)}, nil)
	require.ErrorIs(t, err, errContradiction)
}
