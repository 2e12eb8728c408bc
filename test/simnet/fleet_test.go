package simnet_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/simnet"
)

// endure runs a fleet through a fault in virtual time.
func endure(t *testing.T, f simnet.Fleet) (toll simnet.Toll) {
	f.PieceSize = size
	if f.Rate == 0 {
		f.Rate, f.OriginRate = 100*size, 12*size
	}
	synctest.Test(t, func(t *testing.T) {
		var err error
		toll, err = f.Run(t.Context())
		require.NoError(t, err)
		t.Logf("random seed %d: %.2f copies by %d hosts, longest silence %s, %s in all, %d pulls came back, %d failed",
			f.Seed, toll.Copies, toll.Askers, toll.Silence.Round(10*time.Millisecond),
			toll.Makespan.Round(10*time.Millisecond), toll.Refused, len(toll.Failed))
		require.Empty(t, toll.Failed)
	})
	return toll
}

// naps stops hosts at random for 0.5 to 10 s, as long as the pull runs.
func naps(pick func(g *simnet.Ground) []*simnet.Host) func(g *simnet.Ground) {
	return func(g *simnet.Ground) {
		for {
			for _, h := range pick(g) {
				h.Freeze(time.Duration(500+g.Rand.IntN(9500)) * time.Millisecond)
			}
			select {
			case <-g.Done:
				return
			case <-time.After(time.Duration(2+g.Rand.IntN(10)) * time.Second):
			}
		}
	}
}

// stop stops the hosts for d, some time after the pull began.
func stop(after, d time.Duration, pick func(g *simnet.Ground) []*simnet.Host) func(g *simnet.Ground) {
	return func(g *simnet.Ground) {
		time.Sleep(after)
		for _, h := range pick(g) {
			h.Freeze(d)
		}
	}
}

// restarts restarts the first n supernodes with empty stores, one after the other, at random times.
func restarts(n int) func(g *simnet.Ground) {
	return func(g *simnet.Ground) {
		for _, h := range g.Supers[:n] {
			time.Sleep(time.Duration(g.Rand.IntN(2500)) * time.Millisecond)
			g.Restart(h, time.Duration(200+g.Rand.IntN(3000))*time.Millisecond)
		}
	}
}

func theOwner(g *simnet.Ground) []*simnet.Host  { return g.Supers[:1] }
func allSupers(g *simnet.Ground) []*simnet.Host { return g.Supers }
func allNodes(g *simnet.Ground) []*simnet.Host  { return g.Nodes }
func allHosts(g *simnet.Ground) []*simnet.Host  { return slices.Concat(g.Supers, g.Nodes) }

func halfOfAll(g *simnet.Ground) []*simnet.Host {
	hosts := allHosts(g)
	g.Rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	return hosts[:len(hosts)/2]
}

// The registry sends few bytes twice, whichever hosts stop: the bytes decide, whatever the time. A fifth of a copy is
// six pieces.
func TestFaultsCostFewCopies(t *testing.T) {
	for name, c := range race.Some(map[string]struct {
		fault func(g *simnet.Ground)
		age   time.Duration
		most  float64
	}{
		"the owner dies": {most: 1.2, fault: func(g *simnet.Ground) {
			time.Sleep(time.Second)
			g.Owner.Kill()
		}},
		"the owner falls silent":                 {most: 1.2, fault: stop(time.Second, time.Hour, theOwner)},
		"the owner stops and goes on":            {most: 1.2, fault: stop(0, 3*time.Second, theOwner)},
		"all supernodes fall silent":             {most: 1.2, fault: stop(time.Second, time.Hour, allSupers)},
		"all nodes stop and go on":               {most: 1.2, fault: stop(0, 6*time.Second, allNodes)},
		"no standby is known for six seconds":    {most: 1.5, age: 4 * time.Second, fault: stop(0, 6*time.Second, allSupers)},
		"the owner stops again and again":        {most: 1.2, fault: naps(theOwner)},
		"all supernodes stop again and again":    {most: 1.5, fault: naps(allSupers)},
		"the owner starts again empty":           {most: 1.2, fault: restarts(1)},
		"all supernodes start again, one by one": {most: 1.2, fault: restarts(3)},
		"half of all hosts stop":                 {most: 2, fault: naps(halfOfAll)},
		"all hosts stop":                         {most: 3, fault: naps(allHosts)},
	}, "the owner falls silent", "all supernodes fall silent") {
		t.Run(name, func(t *testing.T) {
			f := simnet.Fleet{Nodes: 8, Supers: 3, K: 32, Fault: c.fault, Age: c.age, Seed: rand.Uint64N(1000)}
			assert.LessOrEqual(t, endure(t, f).Copies, c.most)
		})
	}
}

// All supernodes start again with empty disks, and nodes that have nothing pull at once: the registry sends no byte of
// what other nodes hold.
func TestRestartedSupernodesAskTheNodesFirst(t *testing.T) {
	for name, c := range map[string]struct{ down, pause time.Duration }{
		"at once":             {down: time.Second},
		"a second later":      {down: time.Second, pause: time.Second},
		"after a long outage": {down: 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			toll := endure(t, simnet.Fleet{Nodes: 8, Supers: 3, K: 32, Warm: 6, Seed: rand.Uint64N(1000),
				Prelude: func(g *simnet.Ground) {
					var all sync.WaitGroup
					for _, h := range g.Supers {
						all.Go(func() { g.Restart(h, c.down) })
					}
					all.Wait()
					time.Sleep(c.pause)
				}})
			assert.Zero(t, toll.Copies)
		})
	}
}
