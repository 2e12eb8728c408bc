// Package host names the machines of a cluster: which one holds pieces, and where to reach it.
//
// A host keeps its [ID] as long as it keeps its cache on the same machine, so that pieces it
// announced before a restart are still its own. Start at [Host].
package host

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrInvalidID means that a text is no host ID.
var ErrInvalidID = errors.New("invalid host ID")

// ID is 32 lower-case hex digits. Those of [OfKey] are the name of a key that the host keeps in
// its data directory; those of programs before it were drawn.
type ID string

// NewID draws a new ID.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:])
	return ID(hex.EncodeToString(b[:]))
}

// keyed begins every ID that names a key. A drawn one has it once in four billion.
const keyed = "da27e21d"

// OfKey is the ID of the host that holds a public key: 96 bits of its SHA-256 behind a mark, so that no
// other key has the same ID.
func OfKey(public []byte) ID {
	sum := sha256.Sum256(append([]byte("darter host v1\x00"), public...))
	return ID(keyed + hex.EncodeToString(sum[:12]))
}

// Keyed reports whether the ID names a key. Nothing proves an ID that names none.
func (id ID) Keyed() bool { return len(id) == 32 && id[:len(keyed)] == keyed }

// ParseID checks a text that came from another program. The error wraps [ErrInvalidID].
func ParseID(s string) (ID, error) {
	if b, err := hex.DecodeString(s); err != nil || len(b) != 16 || hex.EncodeToString(b) != s {
		return "", fmt.Errorf("%w: %.80q", ErrInvalidID, s)
	}
	return ID(s), nil
}

// PeerID is the host's 20-byte name in a BitTorrent handshake (BEP 20: client letters and
// version, then bytes of this host's own).
func (id ID) PeerID() (p [20]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(p[:], "-DR0100-")
	copy(p[8:], sum[:])
	return p
}

// Short is the ID cut for people, without the mark that all of keys share.
func (id ID) Short() string {
	if id.Keyed() {
		id = id[len(keyed):]
	}
	return string(id[:min(8, len(id))])
}

// Host is one member as others see it.
type Host struct {
	ID ID `json:"id"`
	// Name is what people call it: the host name, or the node's name in Kubernetes.
	Name string `json:"name,omitempty"`
	// Addr is host:port of its piece wire, reachable from the other members.
	Addr string `json:"addr"`
	// Zone is the name of a place inside of which traffic is cheap; empty is a zone, too.
	Zone string `json:"zone,omitempty"`
}
