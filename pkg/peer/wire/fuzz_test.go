package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
)

// tape is a connection whose other side has sent everything beforehand.
type tape struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (t *tape) Read(p []byte) (int, error)  { return t.in.Read(p) }
func (t *tape) Write(p []byte) (int, error) { return t.out.Write(p) }
func (t *tape) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (t *tape) Close() error                { return nil }
func (t *tape) SetDeadline(time.Time) error { return nil }

func newTape(written []byte) (*tape, *Conn) {
	t := &tape{in: bytes.NewReader(written)}
	c := newConn(t, [20]byte{})
	c.remote.Store(&names)
	return t, c
}

// written is what a connection writes for messages.
func written(ms ...Message) []byte {
	t, c := newTape(nil)
	for _, m := range ms {
		if err := c.Send(m); err != nil {
			panic(err)
		}
	}
	c.Flush()
	return t.out.Bytes()
}

// check fails for values that no caller expects of a message.
func check(t *testing.T, m Message) {
	switch m.Type {
	case Bitfield:
		require.LessOrEqual(t, len(m.Bits), 8*bitfieldMax)
	case Piece:
		require.LessOrEqual(t, m.Length, int64(piece.SizeMax))
		require.GreaterOrEqual(t, m.Index, piece.Index(0))
		require.GreaterOrEqual(t, m.Begin, int64(0))
	case BusyMessage:
		require.GreaterOrEqual(t, m.Busy.Index, BusyAny)
		require.LessOrEqual(t, m.Busy.Delay, 10*time.Second)
		require.GreaterOrEqual(t, m.Busy.Delay, time.Duration(0))
	case AnyMessage:
		require.LessOrEqual(t, len(m.Any.Exclude), excludeMax)
	case DigestMessage:
		require.LessOrEqual(t, len(m.Digests.Runs), runsMax)
		for _, r := range m.Digests.Runs {
			require.NoError(t, r.Check())
		}
	case FailMessage:
		require.LessOrEqual(t, len(m.Failure.Body), api.FailureMax)
		require.LessOrEqual(t, len(m.Failure.Message), api.FailureMax)
		require.GreaterOrEqual(t, m.Failure.Status, 400)
	}
}

func FuzzNext(f *testing.F) {
	f.Add(written(messages()...))
	for _, m := range messages() {
		f.Add(written(m))
	}
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 12, 7, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 1, 15})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 20})
	f.Add([]byte{0, 0, 0, 51, 21, 1, 2, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		_, c := newTape(in)
		for {
			m, err := c.Next()
			if err != nil {
				// Either the tape has ended or its author broke the protocol.
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					require.ErrorIs(t, err, ErrProtocol)
				}
				return
			}
			check(t, m)
			if m.Type == Piece && m.Length > 0 {
				if err := c.ReadPayload(make([]byte, m.Length-m.Length/2)); err != nil {
					return
				}
			}
			if m.Type == Skipped || m.Type == Piece {
				continue
			}
			// A decoded message can be written again, and means the same.
			_, again := newTape(written(m))
			same, err := again.Next()
			require.NoError(t, err)
			require.Equal(t, written(m), written(same))
		}
	})
}

func FuzzExtension(f *testing.F) {
	for _, m := range messages() {
		if b := written(m); len(b) > 6 && b[4] == 20 {
			f.Add(b[5], b[6:])
		}
	}
	f.Add(byte(0), []byte("d1:md6:dr_anyi300eee"))
	f.Add(byte(3), []byte("d1:rld1:d64:"))
	f.Add(byte(1), []byte("d1:xi5ee"))
	f.Fuzz(func(t *testing.T, number byte, payload []byte) {
		m, err := decodeExtended(pp.ExtensionNumber(number), payload, func(map[pp.ExtensionName]pp.ExtensionNumber) {})
		if err == nil {
			check(t, m)
		}
	})
}

// deaf is a tape that drops all writes: the codec may still write when a handshake has failed.
type deaf struct{ *tape }

func (deaf) Write(p []byte) (int, error) { return len(p), nil }

func listening(in []byte) net.Conn { return deaf{&tape{in: bytes.NewReader(in)}} }

// FuzzHandshake sends any bytes first: as the BEP 3 handshake, to the side that was dialled and to the side that
// dialled, and as the messages that follow.
func FuzzHandshake(f *testing.F) {
	swarm, self := [20]byte{1}, [20]byte{2}
	more, err := encodeHello(&Hello{Host: "h", Version: Version})
	require.NoError(f, err)
	bits := extensions()
	good := slices.Concat([]byte(pp.Protocol), bits[:], swarm[:], self[:], more)
	f.Add(good)
	f.Add(good[:handshakeSize])
	f.Add(good[:handshakeSize-1])
	f.Add([]byte{})
	f.Add(append([]byte{255}, good[1:]...))
	bare := bytes.Clone(good[:handshakeSize])
	copy(bare[20:28], make([]byte, 8)) // neither BEP 6 nor BEP 10
	f.Add(bare)
	f.Add(append(bytes.Clone(good[:handshakeSize]), 0xff, 0xff, 0xff, 0xff, 20, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		follow := func(c *Conn) {
			for {
				m, err := c.Next()
				if err != nil {
					return
				}
				check(t, m)
			}
		}
		if c, got, err := Accept(t.Context(), listening(in), self); err == nil {
			require.GreaterOrEqual(t, len(in), handshakeSize)
			require.Equal(t, in[28:48], got[:], "the swarm is that of the handshake")
			id := c.PeerID()
			require.Equal(t, in[48:68], id[:])
			follow(c)
		}
		if c, err := Initiate(t.Context(), listening(in), swarm, self, nil); err == nil {
			require.Equal(t, swarm[:], in[28:48], "an answer for another swarm was taken")
			follow(c)
		}
	})
}
