package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

var (
	swarm      = [20]byte{1, 2, 3}
	idA, idB   = host.ID("00112233445566778899aabbccddeeff"), host.ID("ffeeddccbbaa99887766554433221100")
	everywhere = map[string]func(t *testing.T) (a, b net.Conn){"pipe": pipe, "TCP": tcp}
)

func pipe(t *testing.T) (a, b net.Conn) {
	a, b = net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func tcp(t *testing.T) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	b, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// shake makes the handshake on both ends.
func shake(t *testing.T, rawA, rawB net.Conn) (a, b *Conn) {
	type result struct {
		c   *Conn
		err error
	}
	other := make(chan result, 1)
	go func() {
		c, err := Initiate(context.Background(), rawA, swarm, idA.PeerID(), nil)
		other <- result{c, err}
	}()
	b, asked, err := Accept(t.Context(), rawB, idB.PeerID())
	require.NoError(t, err)
	require.Equal(t, swarm, asked)
	r := <-other
	require.NoError(t, r.err)
	require.Equal(t, idA.PeerID(), b.PeerID())
	require.Equal(t, idB.PeerID(), r.c.PeerID())
	return r.c, b
}

// withHello is shake and the extension handshake of b, so that a may send everything.
func withHello(t *testing.T, rawA, rawB net.Conn) (a, b *Conn) {
	a, b = shake(t, rawA, rawB)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		b.Send(Message{Type: HelloMessage, Hello: &Hello{Host: idB, Version: Version}})
		b.Flush()
	}()
	m, err := a.Next()
	require.NoError(t, err)
	require.Equal(t, HelloMessage, m.Type)
	<-sent // only one goroutine may write
	return a, b
}

func someRun() piece.DigestRun {
	return piece.DigestRun{
		Metadata: piece.MetadataFor(3*piece.SizeMin, "application/octet-stream"), Epoch: 7, First: 1,
		Digests: []piece.Digest{piece.Sum([]byte("1")), piece.Sum([]byte("2"))}, Final: true,
		Key: piece.KeyID{1, 2, 3, 4, 5, 6, 7, 8}, Signature: bytes.Repeat([]byte{9}, 64),
	}
}

// messages are all messages that can be sent, as they arrive.
func messages() []Message {
	bits := make([]bool, 16)
	bits[0], bits[9] = true, true
	bare := someRun()
	bare.Digests, bare.First, bare.Final = nil, 0, false
	return []Message{
		{Type: Bitfield, Bits: bits},
		{Type: Bitfield, All: true},
		{Type: Bitfield},
		{Type: Have, Index: 5},
		{Type: Request, Index: 5, Begin: 1 << 18, Length: 4 << 20},
		{Type: Cancel, Index: 5, Begin: 1 << 18, Length: 4 << 20},
		{Type: Reject, Index: 5, Begin: 1 << 18, Length: 4 << 20},
		{Type: Suggest, Index: 7},
		{Type: HelloMessage, Hello: &Hello{Host: idA, Version: Version, Client: "darter/1", Seed: true, Zone: "a",
			Gateway: true, Alive: true, Leaving: LeavesTask, Origin: ForAll}},
		{Type: HelloMessage, Hello: &Hello{}},
		{Type: AnyMessage, Any: &Any{Exclude: []piece.Index{1, 70000}, SeedsOnly: true}},
		{Type: AnyMessage, Any: &Any{}},
		{Type: BusyMessage, Busy: &Busy{Index: 3, Begin: 12, Delay: 5 * time.Second}},
		{Type: BusyMessage, Busy: &Busy{Index: BusyAny}},
		{Type: DigestMessage, Digests: &Digests{Runs: []piece.DigestRun{someRun(), bare},
			Certificates: [][]byte{{1, 2, 3}}}},
		{Type: DigestMessage, Digests: &Digests{Whole: true}},
		{Type: FailMessage, Failure: &api.Failure{Status: 401, Header: map[string]string{"Www-Authenticate": "Bearer"},
			Body: []byte("{}"), Message: "GET x: 401", Wrong: true, Changed: true, Full: true, Unshared: true,
			Upstream: "quay.io", Repository: "org/app", Asker: "aa"}},
		{Type: RevokeMessage, Revocation: &piece.Revocation{Epoch: 1 << 63, Key: piece.KeyID{8},
			Signature: bytes.Repeat([]byte{3}, 64)}},
	}
}

func TestEveryMessageArrivesAsItWasSent(t *testing.T) {
	for name, connect := range everywhere {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := connect(t)
			a, b := withHello(t, rawA, rawB)
			sent := make(chan error, 1)
			go func() {
				for _, m := range messages() {
					if err := a.Send(m); err != nil {
						sent <- err
						return
					}
				}
				sent <- a.Flush()
			}()
			for _, want := range messages() {
				got, err := b.Next()
				require.NoError(t, err)
				assert.Equal(t, want, got)
			}
			require.NoError(t, <-sent)
			assert.Zero(t, b.Received(), "only bytes of pieces count")
		})
	}
}

// bytesAt is content in memory.
type bytesAt []byte

func (s bytesAt) CopyTo(w io.Writer, off, n int64) (int64, error) {
	m, err := w.Write(s[off : off+n])
	return int64(m), err
}

func TestBlocksArriveWholeAndWhatIsNotReadIsSkipped(t *testing.T) {
	content := make([]byte, 600<<10)
	rand.Read(content)
	for name, connect := range everywhere {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := connect(t)
			a, b := shake(t, rawA, rawB)
			sizes := []int64{1, 5000, 16 << 10, BlockSize, 300<<10 + 1}
			sent := make(chan error, 1)
			go func() {
				var err error
				for i, n := range sizes {
					err = errors.Join(err, a.SendBlock(piece.Index(i), 99, bytesAt(content), 7, n),
						a.Send(Message{Type: Have, Index: 1}))
				}
				sent <- errors.Join(err, a.Flush())
			}()
			total := int64(0)
			for i, n := range sizes {
				m, err := b.Next()
				require.NoError(t, err)
				require.Equal(t, Message{Type: Piece, Index: piece.Index(i), Begin: 99, Length: n}, m)
				got := make([]byte, n-n/3) // the rest is left
				require.NoError(t, b.ReadPayload(got))
				require.True(t, bytes.Equal(content[7:7+len(got)], got))
				total += n
				m, err = b.Next()
				require.NoError(t, err)
				require.Equal(t, Have, m.Type)
				require.Equal(t, total, b.Received())
			}
			require.NoError(t, <-sent)
			require.ErrorIs(t, b.ReadPayload(make([]byte, 1)), ErrProtocol, "no payload is left")
		})
	}
}

// watched records the writer that it is asked to copy to.
type watched struct {
	file *os.File
	to   []io.Writer
}

func (s *watched) CopyTo(w io.Writer, off, n int64) (int64, error) {
	s.to = append(s.to, w)
	if _, err := s.file.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, io.LimitReader(s.file, n))
}

func TestLargeBlocksGoFromTheStoreToTheSocketItself(t *testing.T) {
	content := make([]byte, BlockSize)
	rand.Read(content)
	name := filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.WriteFile(name, content, 0o600))
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	rawA, rawB := tcp(t)
	a, b := shake(t, rawA, rawB)
	src := &watched{file: f}
	sent := make(chan error, 1)
	go func() {
		a.Cork(true)
		err := errors.Join(a.SendBlock(0, 0, src, 0, BlockSize), a.SendBlock(1, 0, src, 100, 1000))
		err = errors.Join(err, a.Flush())
		a.Cork(false)
		sent <- err
	}()
	for _, n := range []int64{BlockSize, 1000} {
		m, err := b.Next()
		require.NoError(t, err)
		require.Equal(t, n, m.Length)
		require.NoError(t, b.ReadPayload(make([]byte, n)))
	}
	require.NoError(t, <-sent)
	assert.Same(t, rawA, src.to[0], "the kernel moves what it can (sendfile)")
	assert.NotEqual(t, rawA, src.to[1], "a small block leaves with its header")
}

// short returns fewer bytes than requested.
type short struct{}

func (short) CopyTo(w io.Writer, _, n int64) (int64, error) {
	m, err := w.Write(make([]byte, n/2))
	return int64(m), err
}

func TestABlockThatComesShortIsAnError(t *testing.T) {
	rawA, rawB := tcp(t)
	a, _ := shake(t, rawA, rawB)
	for _, n := range []int64{1000, 64 << 10} {
		require.ErrorIs(t, a.SendBlock(0, 0, short{}, 0, n), io.ErrShortWrite)
	}
}

func TestMessagesGoUnderTheNumbersTheOtherSideTold(t *testing.T) {
	rawA, rawB := tcp(t)
	a, b := shake(t, rawA, rawB)
	hello, err := bencode.Marshal(map[string]any{"m": map[string]int{"dr_any": 77, "ut_pex": 1, "dr_digests": 0},
		"reqq": 500, "v": "a stranger"})
	require.NoError(t, err)
	rawFrame(t, rawB, append([]byte{20, 0}, hello...))
	m, err := a.Next()
	require.NoError(t, err)
	assert.Equal(t, "a stranger", m.Hello.Client)
	assert.Empty(t, m.Hello.Host)
	for _, m := range []Message{
		{Type: AnyMessage, Any: &Any{}},                                            // under 77
		{Type: DigestMessage, Digests: &Digests{}},                                 // switched off: left out
		{Type: RevokeMessage, Revocation: &piece.Revocation{Signature: []byte{1}}}, // unknown: left out
		{Type: BusyMessage, Busy: &Busy{Index: 3, Begin: 16}, Length: 100},         // becomes a reject
		{Type: BusyMessage, Busy: &Busy{Index: BusyAny}},                           // answers nothing it can have sent
		{Type: Have, Index: 9},
	} {
		require.NoError(t, a.Send(m))
	}
	require.NoError(t, a.Flush())
	frame := readFrame(t, rawB)
	assert.Equal(t, []byte{20, 77}, frame[:2])
	m, err = b.Next()
	require.NoError(t, err)
	assert.Equal(t, Message{Type: Reject, Index: 3, Begin: 16, Length: 100}, m)
	m, err = b.Next()
	require.NoError(t, err)
	assert.Equal(t, Message{Type: Have, Index: 9}, m)
}

func TestLastWordsReachAPeerWhoseHelloIsUnseen(t *testing.T) {
	rawA, rawB := tcp(t)
	a, b := shake(t, rawA, rawB)
	require.NoError(t, a.Send(Message{Type: AnyMessage, Any: &Any{}}))
	require.NoError(t, a.Send(Message{Type: FailMessage, Failure: &api.Failure{Status: 404}}))
	require.NoError(t, a.Flush())
	m, err := b.Next()
	require.NoError(t, err)
	assert.Equal(t, FailMessage, m.Type)
}

// rawFrame sends a message by hand.
func rawFrame(t *testing.T, w io.Writer, body []byte) {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	require.NoError(t, err)
}

func readFrame(t *testing.T, r io.Reader) []byte {
	var head [4]byte
	_, err := io.ReadFull(r, head[:])
	require.NoError(t, err)
	body := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err = io.ReadFull(r, body)
	require.NoError(t, err)
	return body
}

func TestWhatIsTooLongIsRefusedBeforeItComes(t *testing.T) {
	for name, head := range map[string][]byte{
		"a control message": {0, 0x10, 0, 1, 20},
		"4 GiB":             {0xff, 0xff, 0xff, 0xff, 20},
		"a bitfield":        {0, 2, 0, 2, 5},
		"a piece":           {0, 0x40, 0, 10, 7},
		"a piece too short": {0, 0, 0, 8, 7},
	} {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := tcp(t)
			_, b := shake(t, rawA, rawB)
			_, err := rawA.Write(head)
			require.NoError(t, err)
			rawB.SetReadDeadline(time.Now().Add(time.Minute)) // nothing more comes
			_, err = b.Next()
			require.ErrorIs(t, err, ErrProtocol)
		})
	}
}

func TestWhatIsNonsenseIsTheOtherSidesFault(t *testing.T) {
	extended := func(number byte, shape any) []byte {
		b, err := bencode.Marshal(shape)
		require.NoError(t, err)
		return append([]byte{20, number}, b...)
	}
	for name, body := range map[string][]byte{
		"an unknown type":             {99},
		"a have without index":        {4, 0, 0},
		"a have with too much":        {4, 0, 0, 0, 1, 9},
		"a request cut short":         {6, 0, 0, 0, 1},
		"an extension without number": {20},
		"a hello that is no bencode":  {20, 0, 'x'},
		"a hello of a strange host":   extended(0, helloWire{Host: "me"}),
		"excluded pieces cut short":   extended(1, anyWire{Exclude: []byte{1, 2, 3}}),
		"too many excluded pieces":    extended(1, anyWire{Exclude: make([]byte, 4*excludeMax+4)}),
		"busy for no piece":           extended(2, busyWire{Index: -2}),
		"busy for too late a piece":   extended(2, busyWire{Index: piece.CountMax + 1}),
		"a digest cut short": extended(3, digestsWire{Runs: []runWire{{Digests: make([]byte, 33), Key: make([]byte, 8),
			Length: 1, PieceSize: 1}}}),
		"a key cut short": extended(3,
			digestsWire{Runs: []runWire{{Key: make([]byte, 7), Length: 1, PieceSize: 1}}}),
		"facts that cannot be": extended(3,
			digestsWire{Runs: []runWire{{Key: make([]byte, 8), Length: -1, PieceSize: 1}}}),
		"a run beyond the end": extended(3,
			digestsWire{Runs: []runWire{{Digests: make([]byte, 64), Key: make([]byte, 8),
				Length: 1, PieceSize: 1, Final: 1}}}),
		"a signature too long": extended(3, digestsWire{Runs: []runWire{{Key: make([]byte, 8), Length: 1, PieceSize: 1,
			Signature: make([]byte, 129)}}}),
		"a certificate too long":     extended(3, digestsWire{Certificates: [][]byte{make([]byte, certificateMax+1)}}),
		"too many certificates":      extended(3, digestsWire{Certificates: make([][]byte, certificatesMax+1)}),
		"a failure that is none":     extended(4, failWire{Status: 200}),
		"a failure too long":         extended(4, failWire{Status: 404, Body: make([]byte, api.FailureMax+1)}),
		"a revocation by a long key": extended(5, revokeWire{Key: make([]byte, 9)}),
		"a revocation by half a key": extended(5, revokeWire{Key: make([]byte, 4)}),
	} {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := tcp(t)
			_, b := shake(t, rawA, rawB)
			rawFrame(t, rawA, body)
			_, err := b.Next()
			require.ErrorIs(t, err, ErrProtocol)
		})
	}
}

func TestAHostileMessageCostsLittleMoreThanItsLength(t *testing.T) {
	for name, text := range map[string]string{
		"a number of a million digits": "d1:ii" + strings.Repeat("9", 1_000_000) + "ee",
		"a string that is not there":   "d1:x100000000:",
		"half a million empty runs":    "d1:rl" + strings.Repeat("de", 500_000) + "ee",
		"half a million empty strings": "d1:cl" + strings.Repeat("0:", 500_000) + "ee",
		"deep lists":                   "d1:q" + strings.Repeat("l", 500_000) + strings.Repeat("e", 500_001),
	} {
		t.Run(name, func(t *testing.T) {
			for number := range pp.ExtensionNumber(len(names) + 1) {
				_, err := decodeExtended(number, []byte(text), func(map[pp.ExtensionName]pp.ExtensionNumber) {})
				require.Error(t, err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _ = decodeExtended(3, []byte(text), nil)
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
		})
	}
}

func TestMessagesOfOtherClientsAreSkipped(t *testing.T) {
	rawA, rawB := tcp(t)
	_, b := shake(t, rawA, rawB)
	for _, body := range [][]byte{nil, {0}, {1}, {2}, {3}, {9, 0x1a, 0xe1}, {20, 200, 1, 2, 3}} {
		rawFrame(t, rawA, body)
		m, err := b.Next()
		require.NoError(t, err, "%v", body)
		assert.Equal(t, Skipped, m.Type, "%v", body)
	}
}

func TestACutInsideAMessageIsNoProtocolError(t *testing.T) {
	for name, start := range map[string][]byte{
		"nothing":           {},
		"half a length":     {0, 0},
		"a length":          {0, 0, 0, 5},
		"half a have":       {0, 0, 0, 5, 4, 0},
		"half an extension": {0, 0, 1, 0, 20, 1, 'd'},
		"half a piece head": {0, 0, 1, 0, 7, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := tcp(t)
			_, b := shake(t, rawA, rawB)
			_, err := rawA.Write(start)
			require.NoError(t, err)
			rawA.Close()
			_, err = b.Next()
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrProtocol)
		})
	}
	rawA, rawB := tcp(t)
	_, b := shake(t, rawA, rawB)
	_, err := rawA.Write([]byte{0, 0, 1, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3})
	require.NoError(t, err)
	rawA.Close()
	m, err := b.Next()
	require.NoError(t, err)
	err = b.ReadPayload(make([]byte, m.Length))
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrProtocol)
}

func TestStrangersAreTurnedAwayInTheHandshake(t *testing.T) {
	proper := func() []byte {
		b := append([]byte("\x13BitTorrent protocol"), make([]byte, 8)...)
		b[20+5] |= 0x10 // BEP 10
		b[20+7] |= 0x04 // BEP 6
		b = append(b, swarm[:]...)
		id := idA.PeerID()
		return append(b, id[:]...)
	}
	change := func(at int, to byte) []byte {
		b := proper()
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		bytes []byte
		ok    bool
	}{
		"a proper one":     {proper(), true},
		"another protocol": {change(5, 'X'), false},
		"without BEP 10":   {change(25, 0), false},
		"without BEP 6":    {change(27, 0), false},
		"half a handshake": {proper()[:40], false},
		"an HTTP request": {[]byte("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"),
			false},
	} {
		t.Run(name, func(t *testing.T) {
			rawA, rawB := tcp(t)
			go func() {
				rawA.Write(c.bytes)
				rawA.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, rawA)
			}()
			_, asked, err := Accept(t.Context(), rawB, idB.PeerID())
			if !c.ok {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, swarm, asked)
		})
	}
	rawA, rawB := tcp(t)
	go func() {
		b := change(28, 0x77) // another swarm
		rawB.Write(b)
		io.Copy(io.Discard, rawB)
	}()
	_, err := Initiate(t.Context(), rawA, swarm, idA.PeerID(), nil)
	require.ErrorIs(t, err, ErrProtocol)
}

func TestASlowHandshakeEnds(t *testing.T) {
	for name, side := range map[string]func(ctx context.Context, raw net.Conn) error{
		"dialled": func(ctx context.Context, raw net.Conn) error {
			_, err := Initiate(ctx, raw, swarm, idA.PeerID(), nil)
			return err
		},
		"accepted": func(ctx context.Context, raw net.Conn) error {
			_, _, err := Accept(ctx, raw, idA.PeerID())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe(t)
				go func() {
					for range 30 { // a byte a second, for ever
						if _, err := b.Write([]byte{19}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
				begun := time.Now()
				require.Error(t, side(t.Context(), a))
				assert.LessOrEqual(t, time.Since(begun), HandshakeTimeout)
				a.Close()

				a, _ = pipe(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				begun = time.Now()
				require.Error(t, side(ctx, a))
				assert.LessOrEqual(t, time.Since(begun), time.Second)
				a.Close()
			})
		})
	}
}

func TestHangingUpLosesNothingThatWasFlushed(t *testing.T) {
	for range 20 {
		rawA, rawB := tcp(t)
		a, b := withHello(t, rawA, rawB)
		// The other side goes on sending after this side hung up.
		for range 100 {
			require.NoError(t, b.Send(Message{Type: Have}))
		}
		require.NoError(t, b.Flush())
		require.NoError(t, a.Send(Message{Type: FailMessage,
			Failure: &api.Failure{Status: 404, Message: "last words"}}))
		require.NoError(t, a.Flush())
		a.HangUp(time.Second)
		over := make(chan struct{})
		go func() {
			defer close(over)
			for {
				if _, err := a.Next(); err != nil {
					a.Close()
					return
				}
			}
		}()
		for {
			m, err := b.Next()
			require.NoError(t, err)
			if m.Type == FailMessage {
				break
			}
		}
		_, err := b.Next()
		require.ErrorIs(t, err, io.EOF)
		b.Close()
		<-over
	}
}

// writes counts the writes of a connection.
type writes struct {
	net.Conn
	count atomic.Int64
}

func (w *writes) Write(p []byte) (int, error) {
	w.count.Add(1)
	return w.Conn.Write(p)
}

// Both leave in one write.
func TestTheDiallerSendsHandshakeAndHelloTogether(t *testing.T) {
	rawA, rawB := tcp(t)
	counted := &writes{Conn: rawA}
	hello := &Hello{Host: idA, Version: Version, Seed: true}
	dialled := make(chan *Conn, 1)
	go func() {
		c, err := Initiate(context.Background(), counted, swarm, idA.PeerID(), hello)
		assert.NoError(t, err)
		dialled <- c
	}()
	b, _, err := Accept(t.Context(), rawB, idB.PeerID())
	require.NoError(t, err)
	m, err := b.Next()
	require.NoError(t, err)
	require.Equal(t, Message{Type: HelloMessage, Hello: hello}, m)
	a := <-dialled
	assert.Equal(t, hello, a.SentHello())
	assert.Nil(t, b.SentHello())
	assert.EqualValues(t, 1, counted.count.Load())
}

// held counts the writes while it holds, and the others.
type held struct {
	net.Conn
	holding             bool
	within, outside     int
	holdings, releasing int
}

func (h *held) Hold() { h.holding, h.holdings = true, h.holdings+1 }
func (h *held) Release() error {
	h.holding, h.releasing = false, h.releasing+1
	return nil
}

func (h *held) Write(p []byte) (int, error) {
	if h.holding {
		h.within++
	} else {
		h.outside++
	}
	return h.Conn.Write(p)
}

func TestTheRecordsOfABlockAreHeldUntilItIsWhole(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	rawA, rawB := tcp(t)
	under := &held{Conn: rawA}
	certificate := server.TLS.Certificates
	secureA, secureB := tls.Client(under, &tls.Config{InsecureSkipVerify: true}), tls.Server(rawB,
		&tls.Config{Certificates: certificate})
	a, b := shake(t, secureA, secureB)
	content := bytes.Repeat([]byte{7}, BlockSize)
	go func() {
		for {
			if _, err := b.Next(); err != nil {
				return
			}
		}
	}()
	before := under.outside
	require.NoError(t, a.SendBlock(0, 0, bytesAt(content), 0, BlockSize))
	assert.Equal(t, 1, under.holdings)
	assert.Equal(t, 1, under.releasing)
	assert.Equal(t, before, under.outside)
	assert.Greater(t, under.within, BlockSize/(16<<10), "the records, and that of the header")

	require.NoError(t, a.SendBlock(0, 0, bytesAt(content), 0, 100))
	require.NoError(t, a.Flush())
	assert.Equal(t, 1, under.holdings, "what fits into the own buffer is not held")
	assert.Greater(t, under.outside, before)
}
