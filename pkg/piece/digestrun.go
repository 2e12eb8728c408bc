package piece

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/darter-io/darter/pkg/task"
)

// KeyID names a coordinator's signing key: the first 8 bytes of SHA-256 over the public key.
type KeyID [8]byte

func (k KeyID) String() string { return fmt.Sprintf("%x", k[:]) }

// DigestRun holds the digests of consecutive pieces of one task, signed by a coordinator. A host verifies every piece
// from another host against a run, and passes the run on: it stays valid after its coordinator is gone.
type DigestRun struct {
	Metadata Metadata
	// Epoch identifies one attempt of a seed, so that a [Revocation] of one attempt leaves the next valid. It is the
	// start of the attempt in nanoseconds since 1970.
	Epoch uint64
	// First is the piece of Digests[0].
	First   Index
	Digests []Digest
	// Final states that the whole task was checked and is right. Only a final run holds the digest of the last piece.
	Final bool
	// Key is the key of Signature: Ed25519 (RFC 8032) over SigningBytes.
	Key       KeyID
	Signature []byte
}

// End is the index after the run's last piece.
func (r DigestRun) End() Index { return r.First + Index(len(r.Digests)) }

// Check rejects a run that no honest coordinator signs. It does not verify the signature. The error wraps
// [ErrInvalidMetadata].
func (r DigestRun) Check() error {
	if err := r.Metadata.Check(); err != nil {
		return err
	}
	n := r.Metadata.Layout().Count()
	if r.First < 0 || int(r.First) > n || int(r.End()) > n {
		return fmt.Errorf("%w: run of pieces [%d, %d) of %d", ErrInvalidMetadata, r.First, r.End(), n)
	}
	if last := len(r.Digests) > 0 && int(r.End()) == n; last && !r.Final {
		return fmt.Errorf("%w: the last of %d pieces in a run that is not final", ErrInvalidMetadata, n)
	}
	return nil
}

// SigningBytes returns the bytes under the signature: every field but Key and Signature, and the task, so that a run
// proves nothing about another task.
func (r DigestRun) SigningBytes(id task.ID) []byte {
	var b bytes.Buffer
	text := func(s string) {
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
		b.WriteString(s)
	}
	number := func(v uint64) { b.Write(binary.BigEndian.AppendUint64(nil, v)) }
	text("darter run v1")
	text(string(id))
	number(uint64(r.Metadata.Length))
	number(uint64(r.Metadata.PieceSize))
	text(r.Metadata.MediaType)
	number(r.Epoch)
	number(uint64(r.First))
	number(uint64(len(r.Digests)))
	for _, d := range r.Digests {
		b.Write(d[:])
	}
	if r.Final {
		b.WriteByte(1)
	} else {
		b.WriteByte(0)
	}
	return b.Bytes()
}

// Revocation is the signed statement of a coordinator that its digests of one epoch are wrong. A host that holds pieces
// under that epoch drops the task.
type Revocation struct {
	Epoch     uint64
	Key       KeyID
	Signature []byte
}

// SigningBytes returns the bytes under the signature.
func (r Revocation) SigningBytes(id task.ID) []byte {
	b := []byte("darter revocation v1\x00" + string(id) + "\x00")
	return binary.BigEndian.AppendUint64(b, r.Epoch)
}
