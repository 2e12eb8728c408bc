package api_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
)

// whole proves all of a task of two pieces.
func whole() piece.DigestRun {
	return piece.DigestRun{
		Metadata: piece.MetadataFor(piece.SizeMin+1, "text/plain"), Epoch: 1<<63 + 1,
		Digests: []piece.Digest{piece.Sum([]byte("a")), piece.Sum([]byte("b"))},
		Final:   true, Key: piece.KeyID{1, 2, 3}, Signature: []byte("signature"),
	}
}

// A proof gives back the run that it was made of.
func TestProofRoundTrip(t *testing.T) {
	early, part := whole(), whole()
	early.Epoch = 1
	part.First, part.Digests = 1, part.Digests[1:]
	proof := api.NewProof(whole().Metadata, []piece.DigestRun{early, whole(), part}, [][]byte{[]byte("certificate")})
	require.NotNil(t, proof)
	b, err := json.Marshal(api.Assignment{Proof: proof})
	require.NoError(t, err)
	var back api.Assignment
	require.NoError(t, json.Unmarshal(b, &back))
	require.NoError(t, back.Proof.Check())
	run, err := back.Proof.Run()
	require.NoError(t, err)
	assert.Equal(t, whole(), run)
	assert.Equal(t, [][]byte{[]byte("certificate")}, back.Proof.Certificates)

	unfinished, other := whole(), whole()
	unfinished.Final = false
	other.Metadata = piece.MetadataFor(1, "")
	assert.Nil(t, api.NewProof(whole().Metadata, []piece.DigestRun{part, unfinished, other}, nil),
		"none of them is about all of it")
}

// Check refuses what is no proof.
func TestProofCheck(t *testing.T) {
	for name, spoil := range map[string]func(p *api.Proof){
		"a key of another length":    func(p *api.Proof) { p.Key = p.Key[1:] },
		"a digest of another length": func(p *api.Proof) { p.Digests[1] = p.Digests[1][1:] },
		"a piece without a digest":   func(p *api.Proof) { p.Digests = p.Digests[:1] },
		"a digest without a piece":   func(p *api.Proof) { p.Digests = append(p.Digests, p.Digests[0]) },
		"facts that no content has":  func(p *api.Proof) { p.Metadata.PieceSize = 0 },
		"more certificates than needed": func(p *api.Proof) {
			p.Certificates = make([][]byte, api.ProofCertificatesMax+1)
		},
		"a certificate that is no such": func(p *api.Proof) {
			p.Certificates = [][]byte{make([]byte, api.ProofCertificateMax+1)}
		},
		"a signature that is no such": func(p *api.Proof) { p.Signature = make([]byte, api.ProofCertificateMax+1) },
	} {
		t.Run(name, func(t *testing.T) {
			proof := api.NewProof(whole().Metadata, []piece.DigestRun{whole()}, nil)
			require.NoError(t, proof.Check())
			spoil(proof)
			require.ErrorIs(t, proof.Check(), piece.ErrInvalidMetadata)
		})
	}
}
