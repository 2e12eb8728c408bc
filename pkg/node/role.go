package node

import "github.com/darter-io/darter/pkg/peer/upload"

// Role holds the differences between supernodes and dfdaemons.
type Role struct {
	// Program is the name in the status: "supernode" or "dfdaemon".
	Program string
	// Seed makes the engine a seed: it fetches from origins, and chooses the pieces that it sends.
	Seed bool
	// Leads is true if every host of the cluster announces to this member.
	Leads bool
	// UploadSlots is how many requests of other hosts it accepts at once, unless the settings do.
	UploadSlots int
	// UploadLines is how many receivers share its bandwidth at a time; 0 is the engine's default.
	UploadLines int
}

// superSlots is how many requests a supernode accepts at once: the slots of four nodes.
const superSlots = 4 * upload.SlotsDefault

// The two roles. A supernode's network may be wider than a node's: two receivers at a time could not fill it.
var (
	Supernode = Role{Program: "supernode", Seed: true, Leads: true, UploadSlots: superSlots,
		UploadLines: superSlots / 2}
	Dfdaemon = Role{Program: "dfdaemon", UploadSlots: upload.SlotsDefault}
)
