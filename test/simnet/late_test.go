package simnet_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/test/simnet"
)

// Hosts that were stopped take no live owner for dead, so the registry sends one copy. A host that does not measure its
// own lag goes to the registry itself.
func TestStoppedHostsTakeNoOwnerForDead(t *testing.T) {
	f := simnet.Fleet{Nodes: 8, Supers: 2, K: 32, Fault: func(g *simnet.Ground) {
		for _, h := range g.Nodes {
			h.Freeze(6 * time.Second)
		}
	}}
	assert.Less(t, endure(t, f).Copies, 1.1)
	f.Blind = true
	assert.Greater(t, endure(t, f).Copies, 1.1, "the test shows the fault")
}
