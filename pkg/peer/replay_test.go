package peer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// TestReplay plays the events in testdata/loop to a loop that runs no goroutine, and shows what it
// sends to its connections and how it ends. Run it with -rewrite to accept what it does now.
// Events are written as a debug log writes them. In addition:
//
//	new pieces=N [have=BITS]   a download of which BITS are stored (#) or missing (.)
//	conn [seed]                a connection, with its Hello; it gets the next number
//	store piece=N              the store takes a piece, before an event says so
//
// Every command takes at=DURATION since the beginning; else no time passes.
func TestReplay(t *testing.T) {
	datadriven.Walk(t, "testdata/loop", func(t *testing.T, path string) {
		var r *replay
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "new" {
				r = newReplay(t, d)
				return ""
			}
			return r.play(t, d)
		})
	})
}

type replay struct {
	*bench
	begin, now time.Time
	conns      []*conn
	readers    []*Reader
}

func newReplay(t *testing.T, d *datadriven.TestData) *replay {
	var n int
	var have string
	d.ScanArgs(t, "pieces", &n)
	d.MaybeScanArgs(t, "have", &have)
	r := &replay{bench: newBench(t, n), begin: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.now = r.begin
	delete(r.d.conns.open, r.c.n) // the connection of the bench
	r.d.conns.next = 1
	r.e.cfg.Picker.Seed = 1 // the picker decides the same each time
	r.d.pick = nil
	r.d.adoptMetadata(r.now)
	for i, c := range have {
		if c == '#' {
			r.hold(piece.Index(i))
		}
	}
	return r
}

func (r *replay) play(t *testing.T, d *datadriven.TestData) string {
	args := map[string]string{}
	for _, a := range d.CmdArgs {
		args[a.Key] = strings.Join(a.Vals, ",")
	}
	if at, ok := args["at"]; ok {
		since, err := time.ParseDuration(at)
		require.NoError(t, err)
		r.now = r.begin.Add(since)
	}
	number := func(key string) int {
		n, err := strconv.Atoi(args[key])
		require.NoError(t, err, "%s: %s", d.Cmd, key)
		return n
	}
	switch d.Cmd {
	case "conn":
		r.connect(d.HasArg("seed"))
	case "store":
		i := piece.Index(number("piece"))
		data := r.content[int(i)*piece.SizeMin:][:piece.SizeMin]
		require.NoError(t, r.d.store(i, data, piece.Sum(data)))
	default:
		r.d.handle(r.now, r.event(t, d, args, number))
	}
	v := r.d.step(r.now)
	return r.sent() + r.state(v.Hungry)
}

// connect adds a connection that has no goroutines, so that what it is sent stays in its queue.
func (r *replay) connect(seed bool) {
	c := newConn(r.d, r.c.wire, false)
	r.d.conns.add(c)
	r.conns = append(r.conns, c)
	c.remote.host, c.seen.born, c.seen.idleFrom, c.seen.receivedAt = host.NewID(), r.now, r.now, r.now
	c.remote.gotHello, c.remote.seed = true, seed
	r.d.introduce(r.now, c)
}

// event reads an event back from its text.
func (r *replay) event(t *testing.T, d *datadriven.TestData, args map[string]string, number func(string) int) event {
	of := func() *conn { return r.conns[number("conn")-1] }
	var failed error
	if text := args["error"]; text != "" && text != "<nil>" {
		failed = errors.New(text)
	}
	// request takes the request for a piece from the connection, as its reading goroutine does.
	request := func() (*conn, *inbound) {
		c := of()
		in := c.settle(func(in *inbound) bool { return args["piece"] == in.String() })
		return c, in
	}
	switch d.Cmd {
	case "conn-closed":
		return connClosed{of(), failed}
	case "haves-received":
		var pieces []piece.Index
		for text := range strings.SplitSeq(args["pieces"], ",") {
			i, err := strconv.Atoi(text)
			require.NoError(t, err)
			pieces = append(pieces, piece.Index(i))
		}
		return havesReceived{of(), pieces}
	case "message-received":
		m := wire.Message{Index: piece.Index(number("piece")), Length: piece.SizeMin}
		switch args["type"] {
		case "request":
			m.Type = wire.Request
		case "cancel":
			m.Type = wire.Cancel
		default:
			d.Fatalf(t, "no replay of this message")
		}
		return messageReceived{of(), m}
	case "request-bound":
		c := of()
		return requestBound{c, c.bindNext(piece.Index(number("piece")))}
	case "request-rejected":
		c, in := request()
		return requestRejected{c, in}
	case "request-busy":
		c, in := request()
		delay, err := time.ParseDuration(args["delay"])
		require.NoError(t, err)
		return requestBusy{c, in, delay}
	case "request-done":
		c, in := request()
		if failed != nil {
			failed = &piece.DigestError{Index: in.index}
		}
		return requestDone{c, in, failed}
	case "piece-lost":
		return pieceLost{piece.Index(number("piece"))}
	case "piece-damaged":
		return pieceDamaged{piece.Index(number("piece"))}
	case "origin-stored":
		return originStored{piece.Index(number("piece"))}
	case "reader-opened":
		reader := &Reader{d: r.d, off: int64(number("from")), end: int64(number("to"))}
		reader.pos.Store(reader.off)
		r.readers = append(r.readers, reader)
		return readerOpened{reader}
	case "reader-closed":
		reader := r.readers[0]
		r.readers = r.readers[1:]
		return readerClosed{reader}
	}
	d.Fatalf(t, "no replay of this event")
	return nil
}

// sent takes what the loop queued for each connection.
func (r *replay) sent() string {
	var b strings.Builder
	for _, c := range r.conns {
		c.mu.Lock()
		out := c.out
		c.out = nil
		ended := c.stage
		c.mu.Unlock()
		for _, m := range out {
			switch m.Type {
			case wire.Have, wire.Request, wire.Cancel, wire.Reject:
				fmt.Fprintf(&b, "to conn %d: %s %d\n", c.n, m.Type, m.Index)
			default:
				fmt.Fprintf(&b, "to conn %d: %s\n", c.n, m.Type)
			}
		}
		if ended != stageOpen && r.d.conns.has(c) {
			fmt.Fprintf(&b, "conn %d ends\n", c.n)
		}
	}
	return b.String()
}

// state returns the state of a download that has ended, is complete or wants pieces, else nothing.
func (r *replay) state(hungry bool) string {
	switch {
	case r.d.end.err != nil:
		return fmt.Sprintf("the download ends: %v\n", r.d.end.err)
	case r.d.complete():
		return "complete\n"
	case hungry:
		return "hungry\n"
	}
	return ""
}
