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

// DigestRun is a coordinator's signed word on the digests of consecutive pieces of one task. A
// store accepts a piece only under a run, and whoever holds a run can show it to others, so
// that it stays good when its coordinator is gone.
type DigestRun struct {
	Metadata Metadata
	// Epoch tells the attempts of a seed apart: what one attempt vouched for can be
	// revoked without touching the next. Nanoseconds since 1970 at the attempt's start.
	Epoch uint64
	// First is the piece of Digests[0].
	First   Index
	Digests []Digest
	// Final says that the whole content was checked and is right; the digest of the last
	// piece is told in a final run only.
	Final bool
	// Key signed the run: Ed25519 (RFC 8032) over SigningBytes.
	Key       KeyID
	Signature []byte
}

// End is the piece after the run's last.
func (r DigestRun) End() Index { return r.First + Index(len(r.Digests)) }

// Check refuses a run that no honest coordinator signs, before its signature is looked at.
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

// SigningBytes is what the signature is over: every field but Key and Signature, and the
// task, so that a run cannot be moved to another content.
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

// Revocation is a coordinator's signed word that what it vouched for in one epoch is
// wrong: whoever holds pieces under that epoch drops the task.
type Revocation struct {
	Epoch     uint64
	Key       KeyID
	Signature []byte
}

// SigningBytes is what the signature is over.
func (r Revocation) SigningBytes(id task.ID) []byte {
	b := []byte("darter revocation v1\x00" + string(id) + "\x00")
	return binary.BigEndian.AppendUint64(b, r.Epoch)
}
