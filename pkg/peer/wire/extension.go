package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
)

type infoHash = metainfo.Hash

// Bounds on what one extension message may hold.
const (
	runsMax         = 1024
	certificatesMax = 16
	certificateMax  = 4 << 10
	excludeMax      = 4096
	itemsMax        = 32 << 10 // of bencode
	depthMax        = 8
	zoneMax         = 256
)

// names are the dr_ extensions and the numbers under which this side wants them.
var names = map[pp.ExtensionName]pp.ExtensionNumber{
	"dr_any": 1, "dr_busy": 2, "dr_digests": 3, "dr_fail": 4, "dr_revoke": 5,
}

// failureHeaders are the headers that api.Failure names. Clients get no others, because a peer may have invented them.
var failureHeaders = []string{"Content-Type", "Retry-After", "Www-Authenticate"}

type helloWire struct {
	M       map[pp.ExtensionName]pp.ExtensionNumber `bencode:"m"`
	V       string                                  `bencode:"v,omitempty"`
	Version int                                     `bencode:"dr_v,omitempty"`
	Host    string                                  `bencode:"dr_host,omitempty"`
	Seed    int                                     `bencode:"dr_seed,omitempty"`
	Zone    string                                  `bencode:"dr_zone,omitempty"`
	Gateway int                                     `bencode:"dr_gateway,omitempty"`
	Alive   int                                     `bencode:"dr_alive,omitempty"`
	Leaving int                                     `bencode:"dr_leaving,omitempty"`
	Read    int64                                   `bencode:"dr_read,omitempty"`
	Origin  int                                     `bencode:"dr_origin,omitempty"`
}

type anyWire struct {
	Exclude   []byte `bencode:"x,omitempty"` // 4 bytes a piece, big endian
	SeedsOnly int    `bencode:"s,omitempty"`
}

type busyWire struct {
	Index int64 `bencode:"i"`
	Begin int64 `bencode:"b,omitempty"`
	Delay int64 `bencode:"d,omitempty"` // milliseconds
}

type runWire struct {
	Digests   []byte `bencode:"d,omitempty"` // 32 bytes a piece
	Epoch     uint64 `bencode:"e"`
	First     int64  `bencode:"i,omitempty"`
	Key       []byte `bencode:"k"`
	Length    int64  `bencode:"l"`
	MediaType string `bencode:"m,omitempty"`
	PieceSize int64  `bencode:"p"`
	Signature []byte `bencode:"s"`
	Final     int    `bencode:"z,omitempty"`
}

type digestsWire struct {
	Certificates [][]byte  `bencode:"c,omitempty"`
	Runs         []runWire `bencode:"r"`
	Whole        int       `bencode:"w,omitempty"`
}

type failWire struct {
	Asker   string            `bencode:"a,omitempty"`
	Body    []byte            `bencode:"b,omitempty"`
	Changed int               `bencode:"c,omitempty"`
	Full    int               `bencode:"f,omitempty"`
	Header  map[string]string `bencode:"h,omitempty"`
	Message string            `bencode:"m"`
	Alone   int               `bencode:"n,omitempty"` // may not be shared
	Promise int               `bencode:"p,omitempty"`
	Repo    string            `bencode:"r,omitempty"`
	Status  int               `bencode:"s"`
	From    string            `bencode:"u,omitempty"`
	Wrong   int               `bencode:"w,omitempty"`
}

type revokeWire struct {
	Epoch     uint64 `bencode:"e"`
	Key       []byte `bencode:"k"`
	Signature []byte `bencode:"s"`
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// encodeExtended returns a nil payload where the other side does not know the message.
func (c *Conn) encodeExtended(m Message) (pp.ExtensionNumber, []byte, error) {
	var name pp.ExtensionName
	var shape any
	switch m.Type {
	case HelloMessage:
		b, err := bencode.Marshal(helloWire{M: names, V: m.Hello.Client, Version: m.Hello.Version,
			Host: string(m.Hello.Host),
			Seed: flag(m.Hello.Seed), Zone: m.Hello.Zone, Gateway: flag(m.Hello.Gateway), Alive: flag(m.Hello.Alive),
			Origin:  int(m.Hello.Origin),
			Leaving: int(m.Hello.Leaving), Read: m.Hello.Read})
		return pp.HandshakeExtendedID, b, err
	case AnyMessage:
		x := make([]byte, 0, 4*len(m.Any.Exclude))
		for _, i := range m.Any.Exclude {
			x = binary.BigEndian.AppendUint32(x, uint32(i))
		}
		name, shape = "dr_any", anyWire{Exclude: x, SeedsOnly: flag(m.Any.SeedsOnly)}
	case BusyMessage:
		name, shape = "dr_busy", busyWire{Index: int64(m.Busy.Index), Begin: m.Busy.Begin,
			Delay: m.Busy.Delay.Milliseconds()}
	case DigestMessage:
		w := digestsWire{Certificates: m.Digests.Certificates, Whole: flag(m.Digests.Whole)}
		for _, r := range m.Digests.Runs {
			d := make([]byte, 0, len(r.Digests)*len(piece.Digest{}))
			for _, one := range r.Digests {
				d = append(d, one[:]...)
			}
			w.Runs = append(w.Runs, runWire{
				Digests: d, Epoch: r.Epoch, First: int64(r.First), Key: r.Key[:], Length: r.Metadata.Length,
				MediaType: r.Metadata.MediaType, PieceSize: r.Metadata.PieceSize, Signature: r.Signature,
				Final: flag(r.Final),
			})
		}
		name, shape = "dr_digests", w
	case FailMessage:
		name, shape = "dr_fail", failWire{
			Status: m.Failure.Status, Header: m.Failure.Header, Body: m.Failure.Body, Message: m.Failure.Message,
			Wrong: flag(m.Failure.Wrong), Changed: flag(m.Failure.Changed),
			Full: flag(m.Failure.Full), Alone: flag(m.Failure.Unshared), Promise: flag(m.Failure.Promise),
			From: m.Failure.Upstream, Repo: m.Failure.Repository, Asker: m.Failure.Asker,
		}
	case RevokeMessage:
		name, shape = "dr_revoke", revokeWire{Epoch: m.Revocation.Epoch, Key: m.Revocation.Key[:],
			Signature: m.Revocation.Signature}
	}
	remote := c.remote.Load()
	if remote == nil && (m.Type == FailMessage || m.Type == RevokeMessage) {
		// A last message before the other side's Hello: the numbers that every Darter uses
		// are the best guess, and a client that does not know them skips the message.
		remote = &names
	}
	if remote == nil || (*remote)[name] == pp.ExtensionDeleteNumber {
		return 0, nil, nil
	}
	b, err := bencode.Marshal(shape)
	if err != nil {
		return 0, nil, fmt.Errorf("encoding %s: %w", name, err)
	}
	return (*remote)[name], b, nil
}

// extended decodes a BEP 10 message; the numbers are those that this side announced.
func (c *Conn) extended(number pp.ExtensionNumber, payload []byte) (Message, error) {
	m, err := decodeExtended(number, payload, func(remote map[pp.ExtensionName]pp.ExtensionNumber) {
		c.remote.Store(&remote)
	})
	if err != nil {
		return m, fmt.Errorf("%w: extension message %d: %w", ErrProtocol, number, err)
	}
	return m, nil
}

// plausible checks bencode before it is decoded, because a hostile text costs far more to decode than its length: a
// number of a million digits takes seconds and gigabytes.
func plausible(b []byte) error {
	const digitsMax = 20 // of an integer, with its sign
	depth, items := 0, 0
	for i := 0; i < len(b); items++ {
		switch c := b[i]; {
		case c == 'd' || c == 'l':
			depth++
			i++
		case c == 'e':
			depth--
			i++
		case c == 'i':
			end := bytes.IndexByte(b[i:min(len(b), i+digitsMax+2)], 'e')
			if end < 0 {
				return fmt.Errorf("integer without end at byte %d", i)
			}
			i += end + 1
		default:
			colon := bytes.IndexByte(b[i:min(len(b), i+digitsMax)], ':')
			if colon < 0 {
				return fmt.Errorf("neither value nor string at byte %d", i)
			}
			n, err := strconv.ParseUint(string(b[i:i+colon]), 10, 31)
			if i += colon + 1; err != nil || int(n) > len(b)-i {
				return fmt.Errorf("string longer than the message before byte %d", i)
			}
			i += int(n)
		}
		if depth < 0 || depth > depthMax || items > itemsMax {
			return fmt.Errorf("depth %d after %d items", depth, items)
		}
		if depth == 0 {
			return nil
		}
	}
	return fmt.Errorf("ends at depth %d", depth)
}

// origin converts the number of an [Origin]. Nobody stops for a host that says what this version does not know.
func origin(n int) Origin {
	if n < int(NoOrigin) || n > int(ForAll) {
		return NoOrigin
	}
	return Origin(n)
}

func decodeExtended(number pp.ExtensionNumber, payload []byte,
	learn func(map[pp.ExtensionName]pp.ExtensionNumber)) (m Message, err error) {
	if int(number) <= len(names) { // the handshake is 0, ours are 1 to 5
		if err := plausible(payload); err != nil {
			return m, err
		}
	}
	switch number {
	case pp.HandshakeExtendedID:
		m.Hello, err = decodeHello(payload, learn)
		m.Type = HelloMessage
	case names["dr_any"]:
		var w anyWire
		if err = bencode.Unmarshal(payload, &w); err != nil {
			return m, err
		}
		if len(w.Exclude)%4 != 0 || len(w.Exclude)/4 > excludeMax {
			return m, fmt.Errorf("%d bytes of excluded pieces", len(w.Exclude))
		}
		m.Type, m.Any = AnyMessage, &Any{SeedsOnly: w.SeedsOnly != 0}
		for x := w.Exclude; len(x) > 0; x = x[4:] {
			m.Any.Exclude = append(m.Any.Exclude, piece.Index(binary.BigEndian.Uint32(x)))
		}
	case names["dr_busy"]:
		var w busyWire
		if err = bencode.Unmarshal(payload, &w); err != nil {
			return m, err
		}
		if w.Index < int64(BusyAny) || w.Index > piece.CountMax || w.Begin < 0 {
			return m, fmt.Errorf("busy for piece %d", w.Index)
		}
		delay := time.Duration(max(0, min(w.Delay, 10_000))) * time.Millisecond
		m.Type, m.Busy = BusyMessage, &Busy{Index: piece.Index(w.Index), Begin: w.Begin, Delay: delay}
	case names["dr_digests"]:
		m.Digests, err = decodeDigests(payload)
		m.Type = DigestMessage
	case names["dr_fail"]:
		m.Failure, err = decodeFailure(payload)
		m.Type = FailMessage
	case names["dr_revoke"]:
		var w revokeWire
		if err = bencode.Unmarshal(payload, &w); err != nil {
			return m, err
		}
		r := &piece.Revocation{Epoch: w.Epoch, Signature: w.Signature}
		if len(w.Key) != len(r.Key) || len(w.Signature) > 128 {
			return m, fmt.Errorf("revocation by a key of %d bytes", len(w.Key))
		}
		copy(r.Key[:], w.Key)
		m.Type, m.Revocation = RevokeMessage, r
	}
	return m, err
}

func decodeHello(payload []byte, learn func(map[pp.ExtensionName]pp.ExtensionNumber)) (*Hello, error) {
	var w helloWire
	if err := bencode.Unmarshal(payload, &w); err != nil {
		return nil, err
	}
	if w.Host != "" {
		if _, err := host.ParseID(w.Host); err != nil {
			return nil, err
		}
	}
	if len(w.Zone) > zoneMax {
		return nil, fmt.Errorf("zone of %d bytes", len(w.Zone))
	}
	known := make(map[pp.ExtensionName]pp.ExtensionNumber, len(names))
	for name := range names {
		known[name] = w.M[name]
	}
	learn(known)
	return &Hello{Host: host.ID(w.Host), Version: w.Version, Client: w.V[:min(len(w.V), 64)], Seed: w.Seed != 0,
		Zone: w.Zone, Gateway: w.Gateway != 0, Alive: w.Alive != 0, Origin: origin(w.Origin),
		Leaving: min(max(Stays, Leaving(w.Leaving)), LeavesTask),
		Read:    max(0, w.Read)}, nil
}

func decodeFailure(payload []byte) (*api.Failure, error) {
	var w failWire
	if err := bencode.Unmarshal(payload, &w); err != nil {
		return nil, err
	}
	if len(w.Body) > api.FailureMax || w.Status < 400 || w.Status > 599 ||
		len(w.From)+len(w.Repo)+len(w.Asker) > api.FailureMax {
		return nil, fmt.Errorf("failure with status %d and %d bytes", w.Status, len(w.Body))
	}
	f := &api.Failure{
		Status: w.Status, Body: w.Body, Wrong: w.Wrong != 0, Changed: w.Changed != 0, Unshared: w.Alone != 0,
		Promise: w.Promise != 0,
		Message: w.Message[:min(len(w.Message), api.FailureMax)], Full: w.Full != 0, Upstream: w.From,
		Repository: w.Repo, Asker: w.Asker,
	}
	for _, name := range failureHeaders {
		if v, ok := w.Header[name]; ok {
			if f.Header == nil {
				f.Header = make(map[string]string)
			}
			f.Header[name] = v[:min(len(v), api.FailureMax)]
		}
	}
	return f, nil
}

func decodeDigests(payload []byte) (*Digests, error) {
	var w digestsWire
	if err := bencode.Unmarshal(payload, &w); err != nil {
		return nil, err
	}
	if len(w.Runs) > runsMax || len(w.Certificates) > certificatesMax {
		return nil, fmt.Errorf("%d runs and %d certificates", len(w.Runs), len(w.Certificates))
	}
	for _, c := range w.Certificates {
		if len(c) > certificateMax {
			return nil, fmt.Errorf("certificate of %d bytes", len(c))
		}
	}
	out := &Digests{Certificates: w.Certificates, Whole: w.Whole != 0}
	for _, r := range w.Runs {
		const size = len(piece.Digest{})
		run := piece.DigestRun{
			Metadata: piece.Metadata{Length: r.Length, PieceSize: r.PieceSize, MediaType: r.MediaType},
			Epoch:    r.Epoch, First: piece.Index(r.First), Final: r.Final != 0, Signature: r.Signature,
		}
		if len(r.Digests)%size != 0 || len(r.Key) != len(run.Key) || len(r.Signature) > 128 {
			return nil, fmt.Errorf("run with %d bytes of digests, a key of %d and a signature of %d",
				len(r.Digests), len(r.Key),
				len(r.Signature))
		}
		copy(run.Key[:], r.Key)
		for d := r.Digests; len(d) > 0; d = d[size:] {
			run.Digests = append(run.Digests, piece.Digest(d[:size]))
		}
		if err := run.Check(); err != nil {
			return nil, err
		}
		out.Runs = append(out.Runs, run)
	}
	return out, nil
}
