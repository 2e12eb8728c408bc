// Package wire speaks the BitTorrent peer protocol, with Darter's extension, over one
// connection: BEP 3 (handshake, bitfield, have, request, piece, cancel), BEP 6 (reject,
// have none) and BEP 10 (extension handshake), coded by anacrolix/torrent.
//
// The package checks each size that comes from the network before it allocates memory, and never buffers the payload of
// a piece: it goes from the kernel to the caller's memory and, on the way out, from the store to the kernel. One
// goroutine reads a [Conn] and one writes it. Start at [Conn.Next] and [Conn.Send]; docs/protocol.md describes the
// messages.
package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

const (
	// Version is the version of Darter's extension that this code speaks.
	Version = 1
	// BlockSize is how much of a piece travels in one piece message between Darter's
	// peers, so that a cancel or a have waits no longer than one block takes. Bytes.
	BlockSize = 256 << 10
	// controlMax bounds a message that is not a piece, in bytes.
	controlMax = 1 << 20
	// bitfieldMax bounds a bitfield: it decodes to eight times its size.
	bitfieldMax = piece.CountMax/8 + 1
	// HandshakeTimeout bounds the time from the connection to the extension handshake.
	HandshakeTimeout = 5 * time.Second
)

// ErrProtocol means that the other side broke the protocol; the connection is of no use.
var ErrProtocol = errors.New("peer protocol error")

// Type is the kind of a [Message].
type Type byte

// The messages. The reader skips every other message of a peer.
const (
	Skipped       Type = iota // keep-alive, choke, interested and other messages that this host does not use
	Bitfield                  // BEP 3: Bits; BEP 6 have all is a Bitfield with All set
	Have                      // BEP 3: Index
	Request                   // BEP 3: Index, Begin, Length; up to a whole piece
	Piece                     // BEP 3: Index, Begin, Length; the payload follows
	Cancel                    // BEP 3: Index, Begin, Length
	Reject                    // BEP 6: Index, Begin, Length
	Suggest                   // BEP 6: Index; a seed names the piece that an Any will get
	HelloMessage              // BEP 10 handshake: Hello
	AnyMessage                // dr_any: Any
	BusyMessage               // dr_busy: Busy
	DigestMessage             // dr_digests: Digests
	FailMessage               // dr_fail: Failure
	RevokeMessage             // dr_revoke: Revocation
	KeepAlive                 // BEP 3; the other side reads it as Skipped
)

// String is the name of the message in a log.
func (t Type) String() string {
	names := [...]string{"skipped", "bitfield", "have", "request", "piece", "cancel", "reject", "suggest",
		"hello", "any", "busy", "digests", "fail", "revoke", "keep-alive"}
	if int(t) >= len(names) {
		return "unknown"
	}
	return names[t]
}

// Message is one message of the wire; Type says which fields count.
type Message struct {
	Type          Type
	Index         piece.Index
	Begin, Length int64
	Bits          []bool
	All           bool
	Hello         *Hello
	Any           *Any
	Busy          *Busy
	Digests       *Digests
	Failure       *api.Failure
	Revocation    *piece.Revocation
}

// Hello introduces a host in one task.
type Hello struct {
	Host    host.ID
	Version int    // of the extension
	Client  string // name and version of the program, for people
	// Seed says that this host decides itself which piece an Any gets.
	Seed bool
	// Zone is where the host is, at most 256 bytes; Gateway says that it may bring pieces
	// into it.
	Zone    string
	Gateway bool
	// Alive promises a message every second, a keep-alive if there is no other, as long as this host is a seed with
	// missing pieces.
	Alive bool
	// Leaving, in the last Hello, says why this host closes the connection after what it has queued.
	Leaving Leaving
	// Read is how many bytes this host, as a seed, has read of a body of unknown length. While it grows
	// the seed sends it every second, so that waiting hosts see that the origin sends.
	Read int64
	// Origin says for which hosts this one reads the task's origin now.
	Origin Origin
}

// Origin is for which hosts a host reads a task's origin. A host that reads for itself stops for one that does it for
// all.
type Origin int

// The values of [Origin].
const (
	NoOrigin  Origin = iota // it does not read the origin, or a part of it only, or does not say
	ForItself               // it reads all that is missing, because no owner answered
	ForAll                  // it reads all that is missing as the task's owner, or on the owner's order
)

// Leaving is why a host closes a connection. A process that was killed closes without it.
type Leaving int

// The reasons of [Leaving].
const (
	Stays      Leaving = iota // it does not close the connection
	LeavesConn                // it does not need this connection, which is idle or one of two
	LeavesTask                // it does not take part in the task, or no longer
)

// Any asks a seed for a piece that the asker lacks; the seed chooses it and answers with an ordinary piece or with
// Busy. Answers come in the order of the requests.
type Any struct {
	// Exclude lists pieces that the asker gets from other hosts.
	Exclude []piece.Index
	// SeedsOnly says that only seeds have the pieces that the sender needs, or that they come from others too slowly.
	SeedsOnly bool
}

// BusyAny is the Index in a [Busy] that answers an [Any].
const BusyAny piece.Index = -1

// Busy refuses a request for now.
type Busy struct {
	Index piece.Index // of the request, or BusyAny
	Begin int64
	// Delay is the time before the next request; 0 leaves it to the asker.
	Delay time.Duration
}

// Digests are signed runs and the certificates of their keys.
type Digests struct {
	Runs         []piece.DigestRun
	Certificates [][]byte
	// Whole says that the sender has every digest and needs no further one.
	Whole bool
}

// Conn is one connection in one task.
type Conn struct {
	raw   net.Conn
	under holder // nil where raw is no TLS connection
	br    *bufio.Reader
	bw    *bufio.Writer
	dec   pp.Decoder
	// remote holds the numbers under which the other side wants our messages (BEP 10).
	// It is written when its Hello is read and read by the writing goroutine.
	remote atomic.Pointer[map[pp.ExtensionName]pp.ExtensionNumber]
	// peerID is the other side's name in its handshake.
	peerID [20]byte
	// received counts bytes of payload as they come, so that a watcher sees a stalled piece
	// although other messages go on coming.
	received atomic.Int64
	heard    atomic.Int64 // bytes of all kinds
	unread   int64        // payload bytes of the current piece message not read yet
	// broken is the error that ended the connection: without it, a cut inside a message would count as a malformed
	// message.
	broken error
	sent   *Hello // with the handshake
}

// incoming remembers how its connection ended.
type incoming struct{ c *Conn }

func (r incoming) Read(p []byte) (int, error) {
	n, err := r.c.raw.Read(p)
	r.c.heard.Add(int64(n))
	if err != nil && r.c.broken == nil {
		r.c.broken = err
	}
	return n, err
}

func extensions() pp.PeerExtensionBits {
	return pp.NewPeerExtensionBytes(pp.ExtensionBitLtep, pp.ExtensionBitFast)
}

// Initiate makes the BEP 3 handshake as the side that dialled. A hello, if it is not nil,
// follows it at once: the other side answers both in one round trip.
func Initiate(ctx context.Context, raw net.Conn, swarm, self [20]byte, hello *Hello) (*Conn, error) {
	more, err := encodeHello(hello)
	if err != nil {
		return nil, err
	}
	c, err := handshake(ctx, raw, &swarm, self, more)
	if err == nil {
		c.sent = hello
	}
	return c, err
}

func encodeHello(h *Hello) ([]byte, error) {
	if h == nil {
		return nil, nil
	}
	number, payload, err := new(Conn).encodeExtended(Message{Type: HelloMessage, Hello: h})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	m := pp.Message{Type: pp.Extended, ExtendedID: number, ExtendedPayload: payload}
	err = m.WriteTo(&b)
	return b.Bytes(), err
}

// Accept makes the BEP 3 handshake as the side that was dialled, and returns the swarm
// that the other side asks for.
func Accept(ctx context.Context, raw net.Conn, self [20]byte) (*Conn, [20]byte, error) {
	var swarm [20]byte
	c, err := handshake(ctx, raw, nil, self, nil, &swarm)
	return c, swarm, err
}

// shaking joins the parts of this side's handshake, and what follows it, to one write.
type shaking struct {
	net.Conn
	gathered, more []byte
}

// handshakeSize is that of BEP 3's handshake.
const handshakeSize = 68

func (s *shaking) Write(p []byte) (int, error) {
	if s.gathered = append(s.gathered, p...); len(s.gathered) < handshakeSize {
		return len(p), nil
	}
	_, err := s.Conn.Write(append(s.gathered, s.more...))
	s.gathered = nil
	return len(p), err
}

func handshake(ctx context.Context, raw net.Conn, want *[20]byte, self [20]byte, more []byte,
	swarms ...*[20]byte) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var hash *infoHash
	if want != nil {
		h := infoHash(*want)
		hash = &h
	}
	res, err := pp.Handshake(context.Background(), &shaking{Conn: raw, more: more}, hash, self, extensions())
	if err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", raw.RemoteAddr(), err)
	}
	if want != nil && [20]byte(res.Hash) != *want {
		return nil, fmt.Errorf("handshake with %s: %w: it answered for another swarm", raw.RemoteAddr(), ErrProtocol)
	}
	if !res.SupportsExtended() || !res.SupportsFast() {
		return nil, fmt.Errorf("handshake with %s: %w: it lacks BEP 6 or BEP 10", raw.RemoteAddr(), ErrProtocol)
	}
	for _, t := range swarms {
		*t = [20]byte(res.Hash)
	}
	if !stop() {
		return nil, fmt.Errorf("handshake with %s: %w", raw.RemoteAddr(), context.Cause(ctx))
	}
	_ = raw.SetDeadline(time.Time{})
	return newConn(raw, res.PeerID), nil
}

// newConn returns a connection behind its BEP 3 handshake.
func newConn(raw net.Conn, peerID [20]byte) *Conn {
	c := &Conn{raw: raw, peerID: peerID, bw: bufio.NewWriterSize(raw, 16<<10)}
	if t, ok := raw.(*tls.Conn); ok {
		c.under, _ = t.NetConn().(holder)
	}
	c.br = bufio.NewReaderSize(incoming{c}, 16<<10)
	c.dec = pp.Decoder{R: c.br, MaxLength: controlMax}
	return c
}

// PeerID is the other side's name in its handshake ([host.ID.PeerID]).
func (c *Conn) PeerID() [20]byte { return c.peerID }

// SentHello is the hello that this side sent with its handshake, or nil.
func (c *Conn) SentHello() *Hello { return c.sent }

// RemoteAddr is the other side's network address.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// Received is how many bytes of pieces have come so far; any goroutine may ask.
func (c *Conn) Received() int64 { return c.received.Load() }

// Heard is how many bytes of all kinds have come so far; any goroutine may ask.
func (c *Conn) Heard() int64 { return c.heard.Load() }

// Close ends the connection; any goroutine may call it.
func (c *Conn) Close() error { return c.raw.Close() }

// HangUp ends this side's half of the connection, and bounds how long it waits for the other side's last messages. The
// other side can read all flushed bytes: if this side closed the connection with unread bytes, a reset would drop the
// bytes that the other side has not read yet.
func (c *Conn) HangUp(wait time.Duration) {
	half, ok := c.raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		c.raw.Close()
		return
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(wait))
}

// Next reads the next message. After a [Piece] the caller reads its payload with [Conn.ReadPayload]; Next skips the
// bytes that the caller left. The error wraps [ErrProtocol] if the other side broke the protocol.
func (c *Conn) Next() (Message, error) {
	for c.unread > 0 {
		n, err := c.br.Discard(int(min(c.unread, 16<<10)))
		c.unread -= int64(n)
		c.received.Add(int64(n))
		if err != nil {
			return Message{}, err
		}
	}
	head, err := c.br.Peek(4)
	if err != nil {
		return Message{}, err
	}
	length := int64(binary.BigEndian.Uint32(head))
	if length == 0 {
		_, _ = c.br.Discard(4)
		return Message{}, nil
	}
	if head, err = c.br.Peek(5); err != nil {
		return Message{}, err
	}
	switch kind := pp.MessageType(head[4]); {
	case kind == pp.Piece:
		return c.pieceHeader(length)
	case kind == pp.Bitfield && length > bitfieldMax:
		return Message{}, fmt.Errorf("%w: bitfield of %d bytes", ErrProtocol, length)
	case length > controlMax:
		return Message{}, fmt.Errorf("%w: message of type %d and %d bytes", ErrProtocol, kind, length)
	}
	if m, ok, err := c.fixed(pp.MessageType(head[4]), length); ok || err != nil {
		return m, err
	}
	var m pp.Message
	if err := c.dec.Decode(&m); err != nil {
		if c.broken != nil {
			return Message{}, fmt.Errorf("in the middle of a message: %w", c.broken)
		}
		return Message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return c.translate(m)
}

// haveSize is the size of a have on the wire.
const haveSize = 9

// fixed reads a message of fixed size. Nearly all messages are, haves above all, and the codec allocates memory for
// each; ok is false for a message that the codec must read.
func (c *Conn) fixed(kind pp.MessageType, length int64) (m Message, ok bool, err error) {
	var want int64
	switch kind {
	case pp.Have:
		m.Type, want = Have, haveSize-4
	case pp.Suggest:
		m.Type, want = Suggest, 5
	case pp.Request:
		m.Type, want = Request, 13
	case pp.Cancel:
		m.Type, want = Cancel, 13
	case pp.Reject:
		m.Type, want = Reject, 13
	}
	switch {
	case want == 0:
		return Message{}, false, nil
	case length != want:
		return Message{}, false, fmt.Errorf("%w: message of type %d and %d bytes", ErrProtocol, kind, length)
	}
	b, err := c.br.Peek(4 + int(length))
	if err != nil {
		if c.broken != nil {
			err = fmt.Errorf("in the middle of a message: %w", c.broken)
		}
		return Message{}, false, err
	}
	m.Index = piece.Index(binary.BigEndian.Uint32(b[5:]))
	if length == 13 {
		m.Begin, m.Length = int64(binary.BigEndian.Uint32(b[9:])), int64(binary.BigEndian.Uint32(b[13:]))
	}
	_, _ = c.br.Discard(len(b))
	return m, true, nil
}

// HaveNext reports whether the next message is a have that has come already: then
// [Conn.Next] returns it at once. For the reading goroutine.
func (c *Conn) HaveNext() bool {
	if c.unread > 0 || c.br.Buffered() < haveSize {
		return false
	}
	b, err := c.br.Peek(5)
	return err == nil && binary.BigEndian.Uint32(b) == haveSize-4 && pp.MessageType(b[4]) == pp.Have
}

func (c *Conn) pieceHeader(length int64) (Message, error) {
	if length < 9 || length-9 > piece.SizeMax {
		return Message{}, fmt.Errorf("%w: piece message of %d bytes", ErrProtocol, length)
	}
	var b [13]byte
	if _, err := io.ReadFull(c.br, b[:]); err != nil {
		return Message{}, err
	}
	c.unread = length - 9
	return Message{
		Type:   Piece,
		Index:  piece.Index(binary.BigEndian.Uint32(b[5:])),
		Begin:  int64(binary.BigEndian.Uint32(b[9:])),
		Length: length - 9,
	}, nil
}

// ReadPayload reads the next len(p) bytes of the current piece message.
func (c *Conn) ReadPayload(p []byte) error {
	if int64(len(p)) > c.unread {
		return fmt.Errorf("%w: payload shorter than expected", ErrProtocol)
	}
	for len(p) > 0 {
		n, err := c.br.Read(p)
		c.unread -= int64(n)
		c.received.Add(int64(n))
		if p = p[n:]; err != nil && len(p) > 0 {
			return fmt.Errorf("in the middle of a piece: %w", err)
		}
	}
	return nil
}

func (c *Conn) translate(m pp.Message) (Message, error) {
	var out Message
	switch m.Type {
	case pp.Bitfield:
		out.Type, out.Bits = Bitfield, m.Bitfield
	case pp.HaveAll:
		out.Type, out.All = Bitfield, true
	case pp.HaveNone:
		out.Type = Bitfield
	case pp.Extended:
		return c.extended(m.ExtendedID, m.ExtendedPayload)
	}
	return out, nil
}

// Send writes a message into the connection's buffer; [Conn.Flush] sends the buffer.
// Piece messages go through [Conn.SendBlock]. A dr_ message that the other side does not
// speak is left out; a busy becomes a reject then, of m.Length bytes.
func (c *Conn) Send(m Message) error {
	switch m.Type {
	case Have:
		return c.sendFixed(pp.Have, m)
	case Suggest:
		return c.sendFixed(pp.Suggest, m)
	case Request:
		return c.sendFixed(pp.Request, m)
	case Cancel:
		return c.sendFixed(pp.Cancel, m)
	case Reject:
		return c.sendFixed(pp.Reject, m)
	}
	out := pp.Message{Index: pp.Integer(m.Index), Begin: pp.Integer(m.Begin), Length: pp.Integer(m.Length)}
	switch m.Type {
	case Bitfield:
		switch {
		case m.All:
			out.Type = pp.HaveAll
		case len(m.Bits) == 0:
			out.Type = pp.HaveNone
		default:
			out.Type, out.Bitfield = pp.Bitfield, m.Bits
		}
	case KeepAlive:
		_, err := c.bw.Write(make([]byte, 4))
		return err
	case HelloMessage, AnyMessage, BusyMessage, DigestMessage, FailMessage, RevokeMessage:
		number, payload, err := c.encodeExtended(m)
		switch {
		case err != nil:
			return err
		case payload != nil:
			out.Type, out.ExtendedID, out.ExtendedPayload = pp.Extended, number, payload
		case m.Type == BusyMessage && m.Busy.Index >= 0:
			// BEP 6: every request has an answer, also that of a peer without the extension.
			out.Type, out.Index, out.Begin = pp.Reject, pp.Integer(m.Busy.Index), pp.Integer(m.Busy.Begin)
		default:
			return nil
		}
	default:
		return fmt.Errorf("message type %d cannot be sent", m.Type)
	}
	return out.WriteTo(c.bw)
}

// sendFixed writes what fixed reads.
func (c *Conn) sendFixed(kind pp.MessageType, m Message) error {
	b := c.bw.AvailableBuffer()
	if kind == pp.Have || kind == pp.Suggest {
		b = append(binary.BigEndian.AppendUint32(b, 5), byte(kind))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Index))
	} else {
		b = append(binary.BigEndian.AppendUint32(b, 13), byte(kind))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Index))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Begin))
		b = binary.BigEndian.AppendUint32(b, uint32(m.Length))
	}
	_, err := c.bw.Write(b)
	return err
}

// Flush sends the buffered messages.
func (c *Conn) Flush() error { return c.bw.Flush() }

// WriteWithin bounds how long each further write may take.
func (c *Conn) WriteWithin(d time.Duration) error { return c.raw.SetWriteDeadline(time.Now().Add(d)) }

// blocks is the part of a replica that SendBlock uses.
type blocks interface {
	CopyTo(w io.Writer, off, n int64) (int64, error)
}

// SendBlock sends one piece message with the bytes [off, off+n) of src, which lie at
// begin in piece i. On a plain TCP connection they go from the page cache to the socket
// (sendfile). After an error the connection must be closed: half a message may be out.
func (c *Conn) SendBlock(i piece.Index, begin int64, src blocks, off, n int64) error {
	var head [13]byte
	binary.BigEndian.PutUint32(head[:], uint32(9+n))
	head[4] = byte(pp.Piece)
	binary.BigEndian.PutUint32(head[5:], uint32(i))
	binary.BigEndian.PutUint32(head[9:], uint32(begin))
	if _, err := c.bw.Write(head[:]); err != nil {
		return err
	}
	dst, under := io.Writer(c.raw), holder(nil)
	if n <= int64(c.bw.Available()) {
		dst = onlyWriter{c.bw}
	} else {
		if under = c.under; under != nil {
			under.Hold()
		}
		if err := c.bw.Flush(); err != nil {
			return err
		}
	}
	sent, err := src.CopyTo(dst, off, n)
	if err == nil && sent != n {
		err = io.ErrShortWrite
	}
	if under != nil {
		err = errors.Join(err, under.Release())
	}
	return err
}

// holder is a connection that sends the writes between Hold and Release in few parts: a TLS connection of a member of
// the cluster.
type holder interface {
	Hold()
	Release() error
}

// onlyWriter hides ReadFrom, so that small payloads gather in the buffer with their header.
type onlyWriter struct{ io.Writer }

// Cork holds small packets back in the kernel until Cork(false), so that a header and
// its payload leave together. It does nothing where the connection is not plain TCP.
func (c *Conn) Cork(on bool) { cork(c.raw, on) }
