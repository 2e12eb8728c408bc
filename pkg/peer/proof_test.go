package peer

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

const proofTask = task.ID("sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")

func digestOf(b byte) piece.Digest { return piece.Sum([]byte{b}) }

// runAt vouches for pieces from first on.
func runAt(f piece.Metadata, epoch uint64, first piece.Index, digests ...piece.Digest) piece.DigestRun {
	r := piece.DigestRun{Metadata: f, Epoch: epoch, First: first, Digests: digests, Key: piece.KeyID{1}}
	r.Final = int(r.End()) == f.Layout().Count()
	return r
}

// The final run contradicts an earlier run of the same task.
func TestAFinalRunThatContradictsIsNoticed(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	p := newProof(proofTask, memstore.New(memstore.Config{}), credulous{}, nil)
	_, err := p.add([]piece.DigestRun{runAt(f, 1, 0, digestOf(0)), runAt(f, 1, 1, digestOf(1))}, nil)
	require.NoError(t, err)
	_, err = p.add([]piece.DigestRun{runAt(f, 2, 1, digestOf(9))}, nil)
	require.NoError(t, err, "nothing shows yet which of two unchecked runs is right")
	d, _ := p.digest(1)
	assert.Equal(t, digestOf(1), d)
	_, err = p.add([]piece.DigestRun{runAt(f, 3, 0, digestOf(0), digestOf(1), digestOf(2))}, nil)
	require.NoError(t, err)
	_, err = p.add([]piece.DigestRun{runAt(f, 4, 0, digestOf(0), digestOf(8), digestOf(2))}, nil)
	require.ErrorIs(t, err, errContradiction)
}

// The store holds a piece without a signed digest, and a run signs another one.
func TestAPieceYieldsToASignedDigest(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	store := memstore.New(memstore.Config{})
	p := newProof(proofTask, store, credulous{}, nil)
	require.NoError(t, p.setMetadata(f))
	data := make([]byte, piece.SizeMin)
	require.NoError(t, p.replica.WritePiece(1, data, piece.Sum(data)))
	_, err := p.add([]piece.DigestRun{runAt(f, 1, 1, digestOf(1))}, nil)
	require.ErrorIs(t, err, errContradiction)
	_, err = p.add([]piece.DigestRun{runAt(f, 1, 1, piece.Sum(data))}, nil)
	require.NoError(t, err)
}

func TestWhatIsGoodIsKeptAlsoWhenItCameWithSomethingBad(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	store := memstore.New(memstore.Config{})
	p := newProof(proofTask, store, credulous{}, nil)
	bad := runAt(f, 1, 1, digestOf(1))
	bad.First = 77
	numbers, err := p.add([]piece.DigestRun{runAt(f, 1, 0, digestOf(0)), bad}, [][]byte{[]byte("certificate")})
	require.Error(t, err)
	assert.Equal(t, []int{0}, numbers)
	runs, certs := p.replica.Runs()
	assert.Len(t, runs, 1)
	assert.Len(t, certs, 1)
}

func TestARevokedEpochIsNotBelievedAgain(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	p := newProof(proofTask, memstore.New(memstore.Config{}), credulous{}, []piece.Revocation{{Epoch: 1}})
	numbers, err := p.add([]piece.DigestRun{runAt(f, 1, 0, digestOf(0))}, nil)
	var stale *staleError
	require.ErrorAs(t, err, &stale, "a host that still trusts it gets the revocation")
	assert.EqualValues(t, 1, stale.epoch)
	assert.Empty(t, numbers)
	assert.False(t, p.hasMetadata())
	_, err = p.add([]piece.DigestRun{runAt(f, 2, 0, digestOf(0))}, nil)
	require.NoError(t, err)
	assert.False(t, p.concerns(3))
	assert.True(t, p.concerns(2))
}

// picky refuses runs of one epoch.
type picky struct {
	credulous
	epoch uint64
}

func (p picky) VerifyRun(_ task.ID, r piece.DigestRun) error {
	if r.Epoch == p.epoch {
		return errors.New("unknown key")
	}
	return nil
}

// After a restart, runs that cannot be verified leave the other runs good.
func TestRunsThatFailAfterARestartAreLeftOut(t *testing.T) {
	f := piece.MetadataFor(3*piece.SizeMin, "")
	store := memstore.New(memstore.Config{})
	p := newProof(proofTask, store, credulous{}, nil)
	_, err := p.add([]piece.DigestRun{runAt(f, 1, 0, digestOf(0)), runAt(f, 2, 1, digestOf(1))}, nil)
	require.NoError(t, err)
	again := newProof(proofTask, store, picky{epoch: 1}, nil)
	require.NoError(t, again.load())
	assert.Equal(t, -1, again.runFor(0))
	assert.GreaterOrEqual(t, again.runFor(1), 0)
}

// The digest of the task is not that of an empty object.
func TestWrongEmptyMetadataIsRejected(t *testing.T) {
	p := newProof(proofTask, memstore.New(memstore.Config{}), credulous{}, nil)
	require.ErrorIs(t, p.setMetadata(piece.MetadataFor(0, "")), errMetadata)
	assert.False(t, p.hasMetadata())
}

func TestAnotherLengthIsBelievedOfANewerAttemptOnly(t *testing.T) {
	short, long := piece.MetadataFor(3*piece.SizeMin, ""), piece.MetadataFor(4*piece.SizeMin, "")
	p := newProof(proofTask, memstore.New(memstore.Config{}), credulous{}, nil)
	_, err := p.add([]piece.DigestRun{runAt(short, 5, 0, digestOf(0))}, nil)
	require.NoError(t, err)
	_, err = p.add([]piece.DigestRun{runAt(long, 4, 0)}, nil)
	require.ErrorIs(t, err, errMetadata)
	require.NotErrorIs(t, err, errContradiction)
	_, err = p.add([]piece.DigestRun{runAt(long, 6, 0)}, nil)
	require.ErrorIs(t, err, errContradiction)
}
