package api

import (
	"fmt"

	"github.com/darter-io/darter/pkg/piece"
)

// Bounds on a proof.
const (
	ProofCertificatesMax = 4       // certificates in a proof
	ProofCertificateMax  = 4 << 10 // bytes of one of them
)

// Proof is the wire shape of a final [piece.DigestRun] over a whole task, and of what its key is
// believed by. It goes with inline bytes: any member can be an owner, and only a coordinator may vouch
// for bytes.
type Proof struct {
	Metadata piece.Metadata `json:"facts"`
	// Epoch is a string on the wire, since not every reader of JSON keeps 64 bits.
	Epoch     uint64   `json:"epoch,string"`
	Digests   [][]byte `json:"digests,omitempty"`
	Key       []byte   `json:"key"`
	Signature []byte   `json:"signature"`
	// Certificates are DER; one of them is the key's.
	Certificates [][]byte `json:"certificates,omitempty"`
}

// NewProof finds among the runs of a task the last one that vouches for all of it, or returns
// nil. Of the certificates it takes the last ones.
func NewProof(f piece.Metadata, runs []piece.DigestRun, certificates [][]byte) *Proof {
	for i := len(runs) - 1; i >= 0; i-- {
		r := runs[i]
		if !r.Final || r.First != 0 || int(r.End()) != f.Layout().Count() || r.Metadata.Layout() != f.Layout() {
			continue
		}
		p := &Proof{
			Metadata: r.Metadata, Epoch: r.Epoch, Key: r.Key[:], Signature: r.Signature,
			Certificates: certificates[max(0, len(certificates)-ProofCertificatesMax):],
		}
		for _, d := range r.Digests {
			p.Digests = append(p.Digests, d[:])
		}
		return p
	}
	return nil
}

// Run is the run that the proof holds. Its form is checked, its signature is not.
func (p *Proof) Run() (piece.DigestRun, error) {
	r := piece.DigestRun{Metadata: p.Metadata, Epoch: p.Epoch, Final: true, Signature: p.Signature}
	if len(p.Key) != len(r.Key) {
		return piece.DigestRun{}, fmt.Errorf("%w: proof by a key of %d bytes", piece.ErrInvalidMetadata, len(p.Key))
	}
	copy(r.Key[:], p.Key)
	for i, b := range p.Digests {
		var d piece.Digest
		if len(b) != len(d) {
			return piece.DigestRun{}, fmt.Errorf("%w: digest of piece %d has %d bytes",
				piece.ErrInvalidMetadata, i, len(b))
		}
		copy(d[:], b)
		r.Digests = append(r.Digests, d)
	}
	if err := r.Check(); err != nil {
		return piece.DigestRun{}, err
	}
	if n := r.Metadata.Layout().Count(); len(r.Digests) != n {
		return piece.DigestRun{}, fmt.Errorf("%w: proof of %d pieces of %d", piece.ErrInvalidMetadata,
			len(r.Digests), n)
	}
	return r, nil
}

// Check refuses a proof that no honest owner sends.
func (p *Proof) Check() error {
	if len(p.Certificates) > ProofCertificatesMax || len(p.Signature) > ProofCertificateMax {
		return fmt.Errorf("%w: proof with %d certificates and %d bytes of signature",
			piece.ErrInvalidMetadata, len(p.Certificates), len(p.Signature))
	}
	for _, der := range p.Certificates {
		if len(der) > ProofCertificateMax {
			return fmt.Errorf("%w: certificate of %d bytes in a proof", piece.ErrInvalidMetadata, len(der))
		}
	}
	_, err := p.Run()
	return err
}
