package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/hashicorp/memberlist"
)

// ErrMeta means that a member's metadata cannot be used.
var ErrMeta = errors.New("invalid member metadata")

// metaVersion grows when a reader of the version before would misread a field. New fields need no new
// version: readers skip those that they do not know.
const metaVersion = 1

// metaWire is the shape of Meta in the gossip: short keys, since it travels in UDP packets.
type metaWire struct {
	V    int    `json:"v"`
	API  string `json:"a"`
	Role Role   `json:"r,omitempty"`
	Zone string `json:"z,omitempty"`
	Ver  string `json:"p,omitempty"`
}

func encodeMeta(m Meta) ([]byte, error) {
	b, err := json.Marshal(metaWire{metaVersion, m.APIAddr, m.Role, m.Zone, m.Version})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	if len(b) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d: shorten the zone's name",
			ErrMeta, len(b), memberlist.MetaMaxSize)
	}
	if _, err := decodeMeta(b); err != nil {
		return nil, err
	}
	return b, nil
}

// decodeMeta reads the metadata of another member. The error wraps [ErrMeta].
func decodeMeta(b []byte) (Meta, error) {
	var w metaWire
	if len(b) > memberlist.MetaMaxSize {
		return Meta{}, fmt.Errorf("%w: it has %d bytes", ErrMeta, len(b))
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return Meta{}, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	if w.V != metaVersion {
		return Meta{}, fmt.Errorf("%w: it has version %d, this program knows %d", ErrMeta, w.V, metaVersion)
	}
	if _, port, err := net.SplitHostPort(w.API); err != nil || port == "" {
		return Meta{}, fmt.Errorf("%w: API address %.80q", ErrMeta, w.API)
	}
	// A member with a role of a later version owns no tasks here.
	return Meta{APIAddr: w.API, Role: w.Role, Zone: w.Zone, Version: w.Ver}, nil
}
