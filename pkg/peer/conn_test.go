package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// credulous accepts every signature: its tests are not about trust.
type credulous struct{}

func (credulous) AddCertificate([]byte) (piece.KeyID, error)       { return piece.KeyID{1}, nil }
func (credulous) Current(der []byte) []byte                        { return der }
func (credulous) VerifyRun(task.ID, piece.DigestRun) error         { return nil }
func (credulous) VerifyRevocation(task.ID, piece.Revocation) error { return nil }
func (credulous) SignRun(_ task.ID, r *piece.DigestRun)            { r.Key = piece.KeyID{1} }
func (credulous) SignRevocation(_ task.ID, r *piece.Revocation)    { r.Key = piece.KeyID{1} }
func (credulous) Certificate() []byte                              { return []byte("certificate") }

// runOver returns a run that proves all of content.
func runOver(f piece.Metadata, epoch uint64, content []byte) piece.DigestRun {
	r := piece.DigestRun{Metadata: f, Epoch: epoch, Final: true, Key: piece.KeyID{1}}
	for i := range piece.Index(f.Layout().Count()) {
		r.Digests = append(r.Digests, piece.Sum(content[f.Layout().Offset(i):][:f.Layout().Size(i)]))
	}
	return r
}

// bench is one download whose loop does not run by itself, and one of its connections, so that a test decides the order
// of events.
type bench struct {
	t       *testing.T
	content []byte
	e       *Engine
	d       *Download
	c       *conn
	remote  *wire.Conn // the other end
}

func newBench(t *testing.T, pieces int) *bench {
	b := &bench{t: t, content: make([]byte, pieces*piece.SizeMin)}
	for i := range b.content {
		b.content[i] = byte(i * 31 >> 7)
	}
	b.e = New(Config{Host: host.Host{ID: host.NewID()}, Store: memstore.New(memstore.Config{}), Verifier: credulous{},
		Signer: credulous{}})
	b.d = newDownload(b.e, task.Spec{ID: task.ID(fmt.Sprintf("sha256:%x", sha256.Sum256(b.content)))})
	b.d.ctx = t.Context()
	f := piece.MetadataFor(int64(len(b.content)), "")
	_, err := b.d.proof.add([]piece.DigestRun{runOver(f, 1, b.content)}, nil)
	require.NoError(t, err)
	b.d.adoptMetadata(time.Now())

	here, there := net.Pipe()
	type result struct {
		conn *wire.Conn
		err  error
	}
	other := make(chan result, 1)
	go func() {
		c, err := wire.Initiate(context.Background(), there, b.d.id.Swarm(), host.NewID().PeerID(), nil)
		other <- result{c, err}
	}()
	conn, _, err := wire.Accept(t.Context(), here, b.e.cfg.Host.ID.PeerID())
	require.NoError(t, err)
	r := <-other
	require.NoError(t, r.err)
	b.remote = r.conn
	b.c = newConn(b.d, conn, false)
	b.d.conns.open[b.c.n] = b.c
	b.d.introduce(time.Now(), b.c)
	t.Cleanup(func() { here.Close(); there.Close() })
	return b
}

// bringsAll lets the host ask its origin for everything.
func (b *bench) bringsAll() {
	b.d.policy = policy.New(policy.Config{Origin: true})
	b.d.wants.interest = policy.Everything
	b.d.policy.Assigned(time.Now(), b.d.view(), true, false, false)
}

// settle runs the events that have been posted.
func (b *bench) settle() {
	synctest.Wait()
	b.d.drainEvents(time.Now())
}

// reads runs the connection's reading goroutine until the test ends.
func (b *bench) reads() { go b.c.read() }

func (l *conn) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stage == stageClosed
}

// sendPiece sends the bytes of piece i from begin on, from the other end.
func (b *bench) sendPiece(i piece.Index, begin, n int64) {
	require.NoError(b.t, b.remote.SendBlock(i, begin, bytesAt(b.content), int64(i)*piece.SizeMin+begin, n))
	require.NoError(b.t, b.remote.Flush())
}

// hold stores piece i here.
func (b *bench) hold(i piece.Index) {
	data := b.content[int(i)*piece.SizeMin:][:piece.SizeMin]
	require.NoError(b.t, b.d.store(i, data, piece.Sum(data)))
	b.d.got(time.Now(), i, nil)
}

// A connection can end before the job that sends on it; the job still frees the slot.
func TestAClosedConnFreesItsSlot(t *testing.T) {
	b := newBench(t, 2)
	b.hold(0)
	b.c.hangUp(errors.New("cut"))
	for range 10 {
		b.d.serve(time.Now(), b.c, wire.Message{Type: wire.Request, Length: piece.SizeMin})
	}
	assert.Zero(t, b.e.near.slots.Active(), "slots taken by a connection that is over")
	assert.Zero(t, b.c.sending)
}

// A full host gives the slot of the neighbour with the most pieces to one with few.
func TestAFullHostPrefersTheNeighbourWithLess(t *testing.T) {
	b := newBench(t, 40)
	b.hold(0)
	ask := wire.Message{Type: wire.Request, Length: piece.SizeMin}
	lane := &b.e.near
	neighbour := func(have int) *conn {
		l := newConn(b.d, b.c.wire, false)
		b.d.conns.next++
		l.n = b.d.conns.next
		b.d.conns.open[l.n] = l
		b.d.introduce(time.Now(), l)
		for i := range have {
			b.d.has(time.Now(), l, piece.Index(i+1))
		}
		return l
	}
	last := func(l *conn) wire.Message { return l.out[len(l.out)-1] }
	for lane.line.Take(b.d.id, 0, nil, nil) { // others are sending
	}
	for lane.slots.Active() < lane.slots.Max()-1 {
		require.True(t, lane.slots.TryAcquire(b.d.id, new(int)))
	}
	rich, richer, poor, poorer := neighbour(20), neighbour(21), neighbour(4), neighbour(2)
	b.d.serve(time.Now(), rich, ask)
	out, _, _ := rich.take() // as the writing goroutine does: it waits for its turn now
	require.NotEmpty(t, out)
	require.Len(t, rich.jobs, 1)

	b.d.serve(time.Now(), richer, ask)
	assert.Equal(t, wire.BusyMessage, last(richer).Type, "the neighbour with more is refused")
	assert.Len(t, rich.jobs, 1)

	b.d.serve(time.Now(), poor, ask)
	assert.Empty(t, rich.jobs)
	assert.Equal(t, wire.BusyMessage, last(rich).Type, "the displaced neighbour gets a busy")
	assert.Equal(t, wire.Busy{}, *last(rich).Busy)
	assert.Zero(t, rich.sending)
	assert.Len(t, poor.jobs, 1)
	assert.Equal(t, lane.slots.Max(), lane.slots.Active())

	poor.take()
	b.d.serve(time.Now(), poorer, ask)
	assert.Len(t, poor.jobs, 1, "a head start of two pieces is none")
	assert.Equal(t, wire.BusyMessage, last(poorer).Type)

	// A connection whose download is over ends its jobs itself, also if the next download of the same task has begun and
	// gets more requests than it has slots.
	poor.drainSoon()
	_, j, _ := poor.take()
	require.NotNil(t, j)
	b.d.serve(time.Now(), neighbour(0), ask)
	assert.Equal(t, []*job{j}, poor.jobs)
	assert.Equal(t, lane.slots.Max(), lane.slots.Active(), "its slot is given back once")
}

// The engine removes a failed download before it closes the download's connections. Meanwhile the next download of
// the same task finds the old requests in the queue, and must not touch them.
func TestADownloadLeavesEarlierRequestsAlone(t *testing.T) {
	b := newBench(t, 40)
	b.hold(0)
	ask := wire.Message{Type: wire.Request, Length: piece.SizeMin}
	lane := &b.e.near
	for lane.line.Take(b.d.id, 0, nil, nil) { // others are sending
	}
	for lane.slots.Active() < lane.slots.Max()-1 {
		require.True(t, lane.slots.TryAcquire(b.d.id, new(int)))
	}
	for i := range 20 {
		b.d.has(time.Now(), b.c, piece.Index(i+1))
	}
	b.d.serve(time.Now(), b.c, ask)
	b.c.take() // it waits for its turn now
	require.Len(t, b.c.jobs, 1)
	old := b.c.jobs[0]

	next := newDownload(b.e, b.d.wants.spec)
	next.id, next.proof, next.ctx = b.d.id, b.d.proof, b.d.ctx
	next.adoptMetadata(time.Now())
	l := newConn(next, b.c.wire, false)
	next.conns.open[l.n] = l
	next.introduce(time.Now(), l)
	next.serve(time.Now(), l, ask)
	assert.Equal(t, wire.BusyMessage, l.out[len(l.out)-1].Type)
	assert.Equal(t, 1, b.c.sending, "the old loop's own count")
	assert.Equal(t, []*job{old}, b.c.jobs)

	// Its own connection ends it, and gives its slot back once.
	b.c.drainSoon()
	_, j, _ := b.c.take()
	require.Same(t, old, j)
	b.c.hangUp(nil)
	assert.Equal(t, lane.slots.Max()-1, lane.slots.Active())
}

func TestTheLoopDoesNotWaitForItselfWhenAJobIsCancelled(t *testing.T) {
	b := newBench(t, 2)
	b.hold(0)
	b.d.serve(time.Now(), b.c, wire.Message{Type: wire.Request, Length: piece.SizeMin})
	require.Equal(t, 1, b.e.near.slots.Active())
	for range cap(b.d.events) {
		b.d.notify(digestsFailed{})
	}
	done := make(chan struct{})
	go func() {
		b.d.receive(time.Now(), b.c, wire.Message{Type: wire.Cancel, Length: piece.SizeMin})
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the loop waits for room in its own queue")
	}
	assert.Zero(t, b.e.near.slots.Active())
	last := b.c.out[len(b.c.out)-1]
	assert.Equal(t, wire.Reject, last.Type, "a cancelled request is answered (BEP 6)")
}

// Blocks that arrive after a cancel answer no other request.
func TestLateBlocksOfACancelledPieceAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		named := picker.Request{From: b.c.n, Piece: 1}
		whatever := picker.Request{From: b.c.n, Any: true}
		for _, r := range []picker.Request{named, whatever} {
			b.c.expect(&inbound{index: r.Piece, any: r.Any})
			b.d.pick.Requested(r)
		}
		b.hold(1) // from elsewhere: the request is cancelled while its answer is on the way
		require.Equal(t, 1, b.c.expecting())
		b.sendPiece(1, 0, piece.SizeMin/2)
		b.settle()
		require.NoError(t, b.remote.Send(wire.Message{Type: wire.Reject, Index: 1, Length: piece.SizeMin}))
		b.sendPiece(3, 0, piece.SizeMin)
		b.settle()
		assert.True(t, b.d.pick.Have().Has(3), "the any-request was answered with piece 3")
		assert.Zero(t, b.d.pick.Outstanding())
		assert.Empty(t, b.c.pending)
	})
}

// The seed chose a piece for a request without index, and another neighbour sent that piece first.
func TestAnAnyRequestEndsWhenItsPieceIsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		r := picker.Request{From: b.c.n, Any: true}
		b.c.expect(&inbound{any: true})
		b.d.pick.Requested(r)
		b.sendPiece(2, 0, piece.SizeMin/2)
		synctest.Wait()
		b.hold(2) // before the loop learns which piece the neighbour chose
		b.settle()
		assert.Zero(t, b.d.pick.Outstanding(), "the neighbour can be asked again")
		assert.Zero(t, b.c.expecting())
		b.sendPiece(2, piece.SizeMin/2, piece.SizeMin/2)
		b.settle()
		assert.Empty(t, b.c.pending)
	})
}

func TestPiecesAreVerifiedHoweverTheirBlocksMingle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		for i := range piece.Index(4) {
			b.c.expect(&inbound{index: i})
			b.d.pick.Requested(picker.Request{From: b.c.n, Piece: i})
		}
		const half = piece.SizeMin / 2
		for _, block := range []struct {
			i     piece.Index
			begin int64
		}{{0, 0}, {1, 0}, {0, half}, {2, 0}, {2, half}, {1, half}, {3, 0}} {
			b.sendPiece(block.i, block.begin, half)
		}
		b.settle()
		for i := range piece.Index(3) {
			assert.True(t, b.d.pick.Have().Has(i), "piece %d", i)
		}
		b.content[4*piece.SizeMin-1] ^= 1
		b.sendPiece(3, half, half)
		b.settle()
		assert.False(t, b.d.proof.replica.Has(3), "its last byte is wrong")
		assert.Equal(t, 1, b.c.strikes)
	})
}

// A request names a piece, and the seed chooses the same piece for a request without index. Both requests end.
func TestASeedChoosesAPieceAlreadyRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		b.d.hasAll(time.Now(), b.c)
		for _, r := range []picker.Request{{From: b.c.n, Piece: 3}, {From: b.c.n, Any: true}} {
			b.c.expect(&inbound{index: r.Piece, any: r.Any})
			b.d.pick.Requested(r)
		}
		// The seed has sent piece 3 under its name when it chooses the same for the other.
		require.NoError(t, b.remote.Send(wire.Message{Type: wire.Suggest, Index: 3}))
		require.NoError(t, b.remote.Flush())
		b.settle()
		b.sendPiece(3, 0, piece.SizeMin)
		b.settle()
		require.True(t, b.d.pick.Have().Has(3), "the piece came")
		// The rest of the second request is cancelled, and its end comes.
		require.NoError(t, b.remote.Send(wire.Message{Type: wire.Reject, Index: 3, Length: piece.SizeMin}))
		require.NoError(t, b.remote.Flush())
		b.settle()
		assert.Zero(t, b.d.pick.Outstanding())
		assert.Empty(t, b.c.pending)
		assert.True(t, b.d.pick.Complete(b.c.n), "the neighbour is not thought to lack it")
	})
}

func TestAParentThatKeepsTalkingButSendsNoPieceIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		b.c.remote.gotHello = true
		b.c.seen.receivedAt = time.Now()
		b.c.expect(&inbound{index: 1})
		begun := time.Now()
		for i := piece.Index(0); !b.c.isClosed() && i < 100; i++ {
			require.NoError(t, b.remote.Send(wire.Message{Type: wire.Have, Index: i % 4}))
			require.NoError(t, b.remote.Flush())
			time.Sleep(100 * time.Millisecond)
			b.settle()
			b.d.watch(time.Now())
		}
		require.True(t, b.c.isClosed())
		assert.ErrorIs(t, b.c.err, errStalled)
		assert.InDelta(t, b.e.cfg.Stall, time.Since(begun), float64(time.Second))
	})
}

func TestARejectedPieceIsRequestedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.reads()
		b.c.remote.gotHello = true
		b.d.has(time.Now(), b.c, 2)
		all := piece.NewBitmap(4)
		all.SetAll()
		b.d.pick.Want(all)
		asked := func() int {
			b.d.watch(time.Now())
			b.d.request(time.Now())
			return b.c.requested(2)
		}
		require.Equal(t, 1, asked())
		require.NoError(t, b.remote.Send(wire.Message{Type: wire.Reject, Index: 2, Length: piece.SizeMin}))
		require.NoError(t, b.remote.Flush())
		b.settle()
		assert.Zero(t, asked(), "not at once")
		time.Sleep(rejectFor - time.Millisecond)
		assert.Zero(t, asked())
		time.Sleep(time.Millisecond)
		assert.Equal(t, 1, asked(), "it announced the piece")
	})
}

func TestAPeerThatNeverSaysHelloIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		b.c.seen.born = time.Now()
		b.d.watch(time.Now().Add(wire.HandshakeTimeout))
		assert.False(t, b.c.stage == stageClosed)
		b.d.watch(time.Now().Add(wire.HandshakeTimeout + time.Second))
		assert.True(t, b.c.stage == stageClosed)
	})
}

func TestAQueueForAPeerThatDoesNotReadIsBounded(t *testing.T) {
	b := newBench(t, 1)
	for range queueMax + 10 {
		b.c.send(wire.Message{Type: wire.Have})
	}
	assert.LessOrEqual(t, len(b.c.out), queueMax)
	assert.True(t, b.c.stage == stageClosed)
}

// bytesAt serves bytes in memory.
type bytesAt []byte

func (b bytesAt) CopyTo(w io.Writer, off, n int64) (int64, error) {
	m, err := w.Write(b[off : off+n])
	return int64(m), err
}

func TestALatePeerHearsOfARevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		b.e.noteRevoked(time.Now(), b.d.id, piece.Revocation{Epoch: 7, Key: piece.KeyID{1}}, []byte("certificate"))
		require.False(t, b.d.proof.concerns(7))
		go b.remote.Next()
		require.NoError(t, b.c.wire.Send(b.d.hello()))
		require.NoError(t, b.c.wire.Flush())
		synctest.Wait()
		b.reads()
		stale := &wire.Digests{Runs: []piece.DigestRun{runOver(b.d.proof.replica.Metadata(), 7, b.content)}}
		require.NoError(t, b.remote.Send(wire.Message{Type: wire.DigestMessage, Digests: stale}))
		require.NoError(t, b.remote.Flush())
		b.settle()
		last := b.c.out[len(b.c.out)-1]
		require.Equal(t, wire.RevokeMessage, last.Type)
		assert.EqualValues(t, 7, last.Revocation.Epoch)
		assert.False(t, b.c.isClosed(), "believing what was revoked is no offence")
	})
}

// askedOrigin notes its requests, and has no object.
type askedOrigin struct{ offsets []int64 }

func (o *askedOrigin) Open(_ context.Context, _ task.Spec, offset int64) (*source.Response, error) {
	o.offsets = append(o.offsets, offset)
	return nil, &source.StatusError{Status: 404}
}

func TestTheOriginIsAskedForWhatANeighbourTookAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 4)
		origin := &askedOrigin{}
		b.e.cfg.Origin = origin
		b.d.wants.spec = task.Spec{ID: b.d.id}
		for _, i := range []piece.Index{0, 2, 3} {
			b.hold(i)
		}
		b.bringsAll()
		b.d.has(time.Now(), b.c, 1)
		b.d.updateWanted(time.Now())
		b.d.pick.Leave(b.c.n)
		delete(b.d.conns.open, b.c.n)
		b.d.steerOrigin(time.Now(), b.d.view())
		b.settle()
		assert.Equal(t, []int64{piece.SizeMin}, origin.offsets)
	})
}

// An origin sends pieces in order. A host that wants the last one takes the pieces before it from neighbours.
func TestPiecesBeforeTheWantedOneComeFromNeighbours(t *testing.T) {
	b := newBench(t, 4)
	b.d.policy.OriginBegun()
	b.d.has(time.Now(), b.c, 1)
	b.d.wants.ranges = []want{{reader: &Reader{}, first: 3, end: 4}}
	b.d.updateWanted(time.Now())
	assert.Equal(t, 4, b.d.pick.Wanted().Count())
	needed := b.d.origin.needed.Load()
	assert.False(t, needed.Has(1), "a neighbour has it")
	assert.Equal(t, 3, needed.Count())
}

// The download asks such an origin again only when a client wants more pieces.
func TestAnOriginThatCannotHelpRests(t *testing.T) {
	b := newBench(t, 4)
	b.bringsAll()
	b.d.updateWanted(time.Now())
	now := time.Now()
	delete(b.d.conns.open, b.c.n)
	b.d.pick.Leave(b.c.n)
	asks := func(at time.Time) bool { return b.d.policy.Origin(at, b.d.view()) == policy.Ask }
	require.True(t, asks(now))
	b.d.originEnded(now, &originParent{d: b.d}, errUnwanted)
	assert.False(t, asks(now))
	assert.True(t, asks(now.Add(time.Second)))
	b.d.updateWanted(now)
	assert.True(t, asks(now), "there is more to be had")
}

// TestAPieceThatPassedByIsMissing drops a piece of an object that passes by the store before the loop hears that it
// came: no reader needs it any more.
func TestAPieceThatPassedByIsMissing(t *testing.T) {
	b := newBench(t, 4)
	p := newPassing(b.d.id, b.d.proof.replica.Metadata())
	b.d.proof.replica = p
	data := b.content[:piece.SizeMin]
	for _, i := range []piece.Index{0, 1} {
		require.NoError(t, p.WritePiece(i, data, piece.Sum(data)))
	}
	kept := piece.NewBitmap(4)
	kept.Set(1)
	p.drop(kept)
	for _, i := range []piece.Index{0, 1} {
		b.d.got(time.Now(), i, b.c)
		assert.Equal(t, p.Has(i), b.d.pick.Have().Has(i), "piece %d", i)
	}
	assert.EqualValues(t, 2*piece.SizeMin, b.e.Stats().Peers, "both came")
}
