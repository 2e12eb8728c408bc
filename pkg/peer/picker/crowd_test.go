package picker

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
)

// crowd is a swarm of pickers without a network: an upload takes as many turns as there are
// slots, a refusal arrives at once, and all peers learn of a piece in the same turn.
type crowd struct {
	t      *testing.T
	r      *rand.Rand
	pieces int
	peers  []*crowdPeer
	now    time.Time
	// slow is how many turns all peers except the seed take for a piece, instead of one.
	slow int
}

type crowdPeer struct {
	id      Neighbour
	p       *Picker // nil for the seed
	spread  *Spread
	have    piece.Bitmap
	friends map[Neighbour]bool
	uploads []*upload
	sent    int
	gone    bool
}

type upload struct {
	to    *crowdPeer
	index piece.Index
	turns int
	begun time.Time // when its first byte was sent
}

const (
	crowdSlots = 4
	turn       = 10 * time.Millisecond // a quarter of a piece-time
)

func newCrowd(t *testing.T, r *rand.Rand, peers, pieces, friends int) *crowd {
	c := &crowd{t: t, r: r, pieces: pieces, now: begin, slow: 1}
	seed := &crowdPeer{spread: NewSpread(pieces, CopiesMax), have: piece.NewBitmap(pieces),
		friends: map[Neighbour]bool{}}
	seed.have.SetAll()
	c.peers = append(c.peers, seed)
	for range peers {
		c.join(friends)
	}
	return c
}

func (c *crowd) join(friends int) {
	all := piece.NewBitmap(c.pieces)
	all.SetAll()
	peer := &crowdPeer{id: Neighbour(len(c.peers)), have: piece.NewBitmap(c.pieces), friends: map[Neighbour]bool{},
		spread: NewSpread(c.pieces, CopiesMax)}
	peer.p = New(Config{Seed: c.r.Uint64()}, piece.Layout{Length: int64(c.pieces), PieceSize: 1}, peer.have)
	peer.p.Want(all)
	c.peers = append(c.peers, peer)
	for _, i := range c.r.Perm(len(c.peers) - 1)[:min(friends, len(c.peers)-1)] {
		if !c.peers[i].gone {
			c.befriend(peer, c.peers[i])
		}
	}
	c.befriend(peer, c.peers[0])
}

func (c *crowd) befriend(a, b *crowdPeer) {
	for _, pair := range [][2]*crowdPeer{{a, b}, {b, a}} {
		one, other := pair[0], pair[1]
		one.friends[other.id] = true
		if one.p == nil {
			continue
		}
		one.p.Join(other.id, other.p == nil)
		for i := range piece.Index(c.pieces) {
			if other.have.Has(i) {
				one.p.Has(other.id, i)
			}
		}
	}
}

func (c *crowd) leave(peer *crowdPeer) {
	peer.gone, peer.uploads = true, nil
	for _, other := range c.peers {
		delete(other.friends, peer.id)
		if other.p != nil && !other.gone {
			other.p.Leave(peer.id)
		}
		kept := other.uploads[:0]
		for _, u := range other.uploads {
			if u.to != peer {
				kept = append(kept, u)
			}
		}
		other.uploads = kept
	}
}

// ask makes a peer ask for what it decides, and its neighbours answer.
func (c *crowd) ask(peer *crowdPeer) {
	for {
		r, ok := peer.p.Next(c.now)
		if !ok {
			return
		}
		peer.p.Requested(r)
		from := c.peers[r.From]
		i := r.Piece
		granted := len(from.uploads) < crowdSlots
		if granted && r.Any {
			i, granted = from.spread.Pick(from.have, peer.have, r.Exclude, r.SeedsOnly)
		}
		if !granted {
			if r.Any {
				peer.p.Refused(r.From)
			} else {
				peer.p.Ended(r.From, r.Piece)
			}
			peer.p.Busy(r.From, c.now.Add(turn+time.Duration(c.r.Int64N(int64(2*turn)))))
			continue
		}
		if r.Any {
			peer.p.Chosen(r.From, i)
		}
		require.True(c.t, from.have.Has(i))
		from.spread.Sent(i)
		from.uploads = append(from.uploads, &upload{to: peer, index: i})
	}
}

// step lets one turn pass.
func (c *crowd) step() {
	for _, i := range c.r.Perm(len(c.peers)) {
		if peer := c.peers[i]; peer.p != nil && !peer.gone {
			c.ask(peer)
		}
	}
	var done []*upload
	var from []*crowdPeer
	for _, peer := range c.peers {
		kept := peer.uploads[:0]
		for _, u := range peer.uploads {
			if u.begun.IsZero() {
				u.begun = c.now
			}
			if peer.p != nil && c.r.IntN(c.slow) > 0 {
				kept = append(kept, u)
				continue
			}
			// Uploads share the line.
			if u.turns += crowdSlots / max(1, len(peer.uploads)); u.turns < crowdSlots {
				kept = append(kept, u)
				continue
			}
			done, from = append(done, u), append(from, peer)
		}
		peer.uploads = kept
	}
	for j, u := range done {
		from[j].sent++
		u.to.p.Ended(from[j].id, u.index)
		u.to.p.Received(from[j].id, u.index, u.begun, c.now.Add(turn))
		u.to.p.Stored(u.index)
		u.to.have.Set(u.index)
		for id := range u.to.friends {
			if friend := c.peers[id]; friend.p != nil {
				friend.p.Has(u.to.id, u.index)
			}
		}
	}
	c.now = c.now.Add(turn)
}

func (c *crowd) complete() bool {
	for _, peer := range c.peers {
		if !peer.gone && !peer.have.Full() {
			return false
		}
	}
	return true
}

// Every peer gets all pieces, and the seed sends each piece at most twice.
func TestACrowdCompletes(t *testing.T) {
	r := seeded(t)
	for range 6 {
		peers, pieces := 2+r.IntN(40), 1+r.IntN(100)
		c := newCrowd(t, r, peers, pieces, 8)
		turns := 0
		for ; !c.complete(); turns++ {
			require.Less(t, turns, 100*(pieces+10), "%d peers never get all of %d pieces", peers, pieces)
			c.step()
		}
		// CopiesMax for peers with other sources; the first ones depend on the seed.
		assert.LessOrEqual(t, c.peers[0].sent, (CopiesMax+1)*pieces+crowdSlots*peers,
			"copies from the seed, %d peers, %d pieces", peers, pieces)
		for _, peer := range c.peers[1:] {
			peer.p.check(t)
			assert.Zero(t, peer.p.Outstanding())
		}
	}
}

// A crowd of slow peers ends sooner because its seed sends more.
func TestASeedSendsMoreWhenPeersAreSlow(t *testing.T) {
	r := seeded(t)
	play := func(crawl float64) (turns, sent int) {
		c := newCrowd(t, r, 8, 60, 8)
		c.slow = 20
		for _, peer := range c.peers[1:] {
			peer.p.cfg.Crawl = crawl
		}
		for ; !c.complete(); turns++ {
			require.Less(t, turns, 100_000)
			c.step()
		}
		return turns, c.peers[0].sent
	}
	without, usual := play(-1)
	with, sent := play(3)
	t.Logf("%d turns and %d pieces from the seed, without the rule %d and %d", with, sent, without, usual)
	assert.Less(t, with, without*2/3)
	assert.Greater(t, sent, usual*3/2)
}

func TestACrowdBearsPeersThatComeAndGo(t *testing.T) {
	r := seeded(t)
	for range 6 {
		peers, pieces := 5+r.IntN(30), 20+r.IntN(80)
		c := newCrowd(t, r, peers, pieces, 8)
		for turns := 0; !c.complete(); turns++ {
			require.Less(t, turns, 400*(pieces+10), "%d peers never get all of %d pieces", peers, pieces)
			if turns < 10*pieces && r.IntN(10) == 0 {
				if one := c.peers[1+r.IntN(len(c.peers)-1)]; !one.gone {
					c.leave(one)
					c.join(8)
				}
			}
			c.step()
		}
		for _, peer := range c.peers[1:] {
			if !peer.gone {
				peer.p.check(t)
				assert.Zero(t, peer.p.Outstanding())
			}
		}
	}
}
