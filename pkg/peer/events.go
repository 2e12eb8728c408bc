package peer

import (
	"fmt"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// An event reports to a download's loop what happened outside it. This file lists all events: [Download.handle] shows
// what each does. Goroutines that read and write connections and disks only send events; they change no state of the
// loop.
//
// String describes an event in one line of a debug log, as the scenarios in testdata/loop write it:
// they replay events to a loop.
type event interface{ fmt.Stringer }

// Events of connections. The loop ignores those of a connection that it has dropped.
type (
	// connOpened offers a connection after its handshake. The loop answers on verdict: nil, or why it
	// refuses the connection.
	connOpened struct {
		conn      *wire.Conn
		initiated bool    // by this side
		host      host.ID // empty where the other side dialled: its Hello says it
		verdict   chan<- error
	}
	// connClosed ends a connection; err is nil where this side closed it in order.
	connClosed struct {
		c   *conn
		err error
	}
	// messageReceived carries a message that needs no other event.
	messageReceived struct {
		c *conn
		m wire.Message
	}
	// havesReceived carries the haves that came together.
	havesReceived struct {
		c      *conn
		pieces []piece.Index
	}
	// digestsReceived carries the numbers of runs that are verified and stored already. whole says
	// that the neighbour needs no digest from this host.
	digestsReceived struct {
		c     *conn
		runs  []int
		whole bool
	}
	// digestsStale says that a neighbour sent digests of a revoked epoch.
	digestsStale struct {
		c     *conn
		epoch uint64
	}
	// digestsFailed says that digests contradict what is stored, or that the disk did not take them.
	digestsFailed struct{ err error }
	// requestBound names the piece with which a neighbour answers an any-request.
	requestBound struct {
		c  *conn
		in *inbound
	}
	// requestRejected ends a request without an answer.
	requestRejected struct {
		c  *conn
		in *inbound
	}
	// requestBusy ends a request for which the neighbour has no slot. It asks to be left alone for
	// delay.
	requestBusy struct {
		c     *conn
		in    *inbound
		delay time.Duration
	}
	// requestDone ends a request whose last block came; err says why the piece was not stored.
	requestDone struct {
		c   *conn
		in  *inbound
		err error
	}
	// uploadEnded ends a job; sent says that all of its bytes went out.
	uploadEnded struct {
		c    *conn
		j    *job
		sent bool
	}
)

// Events of readers and of the disk.
type (
	// readerOpened adds the range of a reader to the wanted pieces.
	readerOpened struct{ r *Reader }
	// readerClosed removes it, after Config.Linger.
	readerClosed struct{ r *Reader }
	// wholeWanted adds or removes callers that want the whole object without reading it.
	wholeWanted struct{ n int }
	// pieceLost says that the store does not hold a piece any more.
	pieceLost struct{ index piece.Index }
	// pieceDamaged says that a stored piece does not match its digest.
	pieceDamaged struct{ index piece.Index }
	// pieceChecked ends a check that a neighbour's second request for a piece caused.
	pieceChecked struct {
		index   piece.Index
		damaged bool
	}
)

// Events of the owner and of the hosts that it names.
type (
	// ownerReplied ends an announce that was made with spec.
	ownerReplied struct {
		spec  task.Spec
		reply api.Assignment
		// leader says whose coordinator replied.
		leader owners.Leader
		err    error
		// unpacked is the part of the reply about the blob itself; it is verified and stored already.
		unpacked unpacked
	}
	// dialEnded ends an attempt to connect; on success connOpened came before.
	dialEnded struct {
		to  api.Neighbour
		err error
	}
)

// Events of the origin.
type (
	// originStored says that the origin brought a piece and that it is stored.
	originStored struct{ index piece.Index }
	// originSigned carries the numbers of runs that this host signed.
	originSigned struct{ runs []int }
	// originEnded ends the reading of the origin; err is nil once everything is here and signed.
	originEnded struct {
		o   *originParent
		err error
	}
)

// Events of the engine.
type (
	// spaceNeeded asks the download to end and free its space, if no reader and no peer uses it. The loop
	// answers on yields.
	spaceNeeded struct{ yields chan<- bool }
	// purged ends the download of a task that is being deleted.
	purged struct{}
)

// handle applies one event. The loop takes events nowhere else.
func (d *Download) handle(now time.Time, ev event) {
	if d.debug {
		d.log.Debug("event", "what", ev.String())
	}
	switch ev := ev.(type) {
	case connOpened:
		ev.verdict <- d.admit(now, ev.conn, ev.initiated, ev.host)
	case connClosed:
		d.disconnected(now, ev.c, ev.err)
	case messageReceived:
		d.receive(now, ev.c, ev.m)
	case havesReceived:
		d.hasSome(now, ev.c, ev.pieces)
	case digestsReceived:
		d.digests(now, ev.c, ev.runs, ev.whole)
	case digestsStale:
		d.sendRevoked(ev.c, ev.epoch)
	case digestsFailed:
		d.failDigests(now, ev.err)
	case requestBound:
		d.bound(ev.c, ev.in)
	case requestRejected:
		d.rejected(now, ev.c, ev.in)
	case requestBusy:
		d.refused(now, ev.c, ev.in, ev.delay)
	case requestDone:
		d.arrived(now, ev.c, ev.in, ev.err)
	case uploadEnded:
		d.served(ev.c, ev.j, ev.sent)

	case readerOpened:
		d.addReader(now, ev.r)
	case readerClosed:
		d.wants.left(now, ev.r, d.e.cfg.Linger)
	case wholeWanted:
		d.addWhole(ev.n)
	case pieceLost:
		d.lost(ev.index)
	case pieceDamaged:
		d.dropDamaged(ev.index)
	case pieceChecked:
		d.checked(ev.index, ev.damaged)

	case ownerReplied:
		d.assigned(now, ev)
	case dialEnded:
		d.dialled(now, ev.to, ev.err)

	case originStored:
		d.got(now, ev.index, nil)
	case originSigned:
		d.digests(now, nil, ev.runs, false)
	case originEnded:
		d.originEnded(now, ev.o, ev.err)

	case spaceNeeded:
		ev.yields <- d.yield(now)
	case purged:
		d.fail(ErrDropped)
	default:
		panic(fmt.Sprintf("peer: no such event: %T", ev))
	}
}

func (e connOpened) String() string {
	return fmt.Sprintf("conn-opened initiated=%t host=%s", e.initiated, e.host.Short())
}
func (e connClosed) String() string { return fmt.Sprintf("conn-closed conn=%d error=%v", e.c.n, e.err) }
func (e messageReceived) String() string {
	return fmt.Sprintf("message-received conn=%d type=%s", e.c.n, e.m.Type)
}
func (e havesReceived) String() string {
	return fmt.Sprintf("haves-received conn=%d pieces=%s", e.c.n, list(e.pieces))
}
func (e digestsReceived) String() string {
	return fmt.Sprintf("digests-received conn=%d runs=%s whole=%t", e.c.n, list(e.runs), e.whole)
}
func (e digestsStale) String() string {
	return fmt.Sprintf("digests-stale conn=%d epoch=%d", e.c.n, e.epoch)
}
func (e digestsFailed) String() string { return fmt.Sprintf("digests-failed error=%v", e.err) }
func (e requestBound) String() string {
	return fmt.Sprintf("request-bound conn=%d piece=%s", e.c.n, e.in)
}
func (e requestRejected) String() string {
	return fmt.Sprintf("request-rejected conn=%d piece=%s", e.c.n, e.in)
}
func (e requestBusy) String() string {
	return fmt.Sprintf("request-busy conn=%d piece=%s delay=%s", e.c.n, e.in, e.delay)
}
func (e requestDone) String() string {
	return fmt.Sprintf("request-done conn=%d piece=%s error=%v", e.c.n, e.in, e.err)
}
func (e uploadEnded) String() string {
	return fmt.Sprintf("upload-ended conn=%d piece=%d sent=%t", e.c.n, e.j.index, e.sent)
}
func (e readerOpened) String() string {
	return fmt.Sprintf("reader-opened from=%d to=%d", e.r.off, e.r.end)
}
func (e readerClosed) String() string {
	return fmt.Sprintf("reader-closed from=%d to=%d at=%d", e.r.off, e.r.end, e.r.pos.Load())
}
func (e wholeWanted) String() string  { return fmt.Sprintf("whole-wanted callers=%+d", e.n) }
func (e pieceLost) String() string    { return fmt.Sprintf("piece-lost piece=%d", e.index) }
func (e pieceDamaged) String() string { return fmt.Sprintf("piece-damaged piece=%d", e.index) }
func (e pieceChecked) String() string {
	return fmt.Sprintf("piece-checked piece=%d damaged=%t", e.index, e.damaged)
}
func (e ownerReplied) String() string {
	return fmt.Sprintf("owner-replied neighbours=%d seed=%t leader=%v inline=%d error=%v",
		len(e.reply.Neighbours), e.reply.Seed, e.leader, len(e.reply.Inline), e.err)
}
func (e dialEnded) String() string {
	return fmt.Sprintf("dial-ended host=%s error=%v", e.to.ID.Short(), e.err)
}
func (e originStored) String() string { return fmt.Sprintf("origin-stored piece=%d", e.index) }
func (e originSigned) String() string { return fmt.Sprintf("origin-signed runs=%s", list(e.runs)) }
func (e originEnded) String() string  { return fmt.Sprintf("origin-ended error=%v", e.err) }
func (spaceNeeded) String() string    { return "space-needed" }
func (purged) String() string         { return "purged" }

// String names the piece of a request in a log.
func (in *inbound) String() string {
	switch {
	case in == nil:
		return "none"
	case in.any:
		return "any"
	}
	return fmt.Sprint(in.index)
}

// list writes numbers as 1,2,3.
func list[T ~int | ~int32 | ~int64](numbers []T) string {
	var b strings.Builder
	for i, n := range numbers {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, n)
	}
	return b.String()
}
