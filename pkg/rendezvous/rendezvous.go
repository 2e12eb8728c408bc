// Package rendezvous orders the members of a set for a key, so that all hosts that know the same members
// agree on the first one without a message.
//
// When a member leaves, only the keys it led move, and each moves to the member that was
// second for it (highest random weight hashing). Start at [Order].
package rendezvous

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// Weight returns the weight of a member for a key. The member with the highest weight comes first; of equals the one
// that sorts first.
func Weight(key, member string) uint64 {
	h := sha256.Sum256([]byte(member + "\x00" + key))
	return binary.BigEndian.Uint64(h[:])
}

// Order returns members from the first owner of key to the last. The result does not
// depend on the order of members, which is left as it was; duplicates stay.
func Order(key string, members []string) []string {
	type weighted struct {
		member string
		weight uint64
	}
	all := make([]weighted, len(members))
	for i, m := range members {
		all[i] = weighted{m, Weight(key, m)}
	}
	slices.SortFunc(all, func(a, b weighted) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return strings.Compare(a.member, b.member)
	})
	out := make([]string, len(all))
	for i, w := range all {
		out[i] = w.member
	}
	return out
}
