package diskstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// The journal's format. Keep it in sync with docs/storage.md, "The journal".
const (
	journalMagic   = "DARTERJ\n"
	journalVersion = 1
	headerFixed    = len(journalMagic) + 12 // magic, version, body length, checksum
	headerBodyMax  = 1024
	frameFixed     = 8 // payload length, checksum
	markSize       = frameFixed + 1 + 8 + 4
	// payloadMax is the longest payload: a run of all pieces of the longest content.
	payloadMax = piece.CountMax*len(piece.Digest{}) + 128<<10
	// signatureMax and certificateMax bound AddRuns, in bytes: far more than Ed25519 and X.509 need.
	signatureMax   = 1 << 10
	certificateMax = 64 << 10

	kindPiece       = 1
	kindDrop        = 2
	kindRun         = 3
	kindCertificate = 4
	kindMark        = 5
	// A reader skips unknown kinds from kindOptional on.
	kindOptional = 128
	// kindNothing has no meaning: it tests whether the journal takes writes.
	kindNothing = 128
)

var (
	// errNewer means that a newer version of the program wrote the journal.
	errNewer = errors.New("journal was written by a newer version")
	// errDamaged means that no version of the program wrote the header.
	errDamaged = errors.New("journal header is damaged")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// header is the start of a journal.
type header struct {
	id    task.ID
	facts piece.Metadata
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func encodeHeader(h header) []byte {
	var body []byte
	body = appendText(body, string(h.id))
	body = binary.BigEndian.AppendUint64(body, uint64(h.facts.Length))
	body = binary.BigEndian.AppendUint64(body, uint64(h.facts.PieceSize))
	body = appendText(body, h.facts.MediaType)

	b := append([]byte(nil), journalMagic...)
	b = binary.BigEndian.AppendUint32(b, journalVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	sum := crc32.Update(crc32.Checksum(b[len(journalMagic):], castagnoli), castagnoli, body)
	b = binary.BigEndian.AppendUint32(b, sum)
	return append(b, body...)
}

// decodeHeader decodes the header at the start of b, the first bytes of a journal, and returns its length in bytes.
// The error wraps errNewer or errDamaged.
func decodeHeader(b []byte) (h header, n int, err error) {
	if len(b) < headerFixed || string(b[:len(journalMagic)]) != journalMagic {
		return h, 0, fmt.Errorf("%w: no magic", errDamaged)
	}
	fixed := b[len(journalMagic):]
	// Check the version first, before the checksum: a newer version may change everything after it.
	if v := binary.BigEndian.Uint32(fixed); v > journalVersion {
		return h, 0, fmt.Errorf("%w: %d, this program knows %d", errNewer, v, journalVersion)
	} else if v < 1 {
		return h, 0, fmt.Errorf("%w: version %d", errDamaged, v)
	}
	size := int(binary.BigEndian.Uint32(fixed[4:]))
	if size > headerBodyMax || headerFixed+size > len(b) {
		return h, 0, fmt.Errorf("%w: body of %d bytes", errDamaged, size)
	}
	body := b[headerFixed : headerFixed+size]
	if crc32.Update(crc32.Checksum(fixed[:8], castagnoli), castagnoli, body) != binary.BigEndian.Uint32(fixed[8:]) {
		return h, 0, fmt.Errorf("%w: checksum", errDamaged)
	}
	d := decoder{b: body}
	id := d.text()
	h.facts = piece.Metadata{Length: int64(d.u64()), PieceSize: int64(d.u64()), MediaType: d.text()}
	if err := d.done(); err != nil {
		return h, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if h.id, err = task.ParseID(id); err != nil {
		return h, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := h.facts.Check(); err != nil {
		return h, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return h, headerFixed + size, nil
}

// frame writes length and checksum of the payload b[start+frameFixed:] into the frameFixed bytes before it.
func frame(b []byte, start int) []byte {
	f := b[start:]
	binary.BigEndian.PutUint32(f, uint32(len(f)-frameFixed))
	sum := crc32.Update(crc32.Checksum(f[:4], castagnoli), castagnoli, f[frameFixed:])
	binary.BigEndian.PutUint32(f[4:], sum)
	return b
}

func begin(b []byte, kind byte) (out []byte, start int) {
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, kind), len(b)
}

func appendPiece(b []byte, i piece.Index, d piece.Digest) []byte {
	b, start := begin(b, kindPiece)
	b = binary.BigEndian.AppendUint32(b, uint32(i))
	return frame(append(b, d[:]...), start)
}

func appendDrop(b []byte, i piece.Index) []byte {
	b, start := begin(b, kindDrop)
	return frame(binary.BigEndian.AppendUint32(b, uint32(i)), start)
}

func appendCertificate(b, der []byte) []byte {
	b, start := begin(b, kindCertificate)
	return frame(append(b, der...), start)
}

func appendMark(b []byte, covers int64, have int) []byte {
	b, start := begin(b, kindMark)
	b = binary.BigEndian.AppendUint64(b, uint64(covers))
	return frame(binary.BigEndian.AppendUint32(b, uint32(have)), start)
}

func appendNothing(b []byte) []byte {
	b, start := begin(b, kindNothing)
	return frame(b, start)
}

func appendRun(b []byte, r piece.DigestRun) []byte {
	b, start := begin(b, kindRun)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Metadata.Length))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Metadata.PieceSize))
	b = appendText(b, r.Metadata.MediaType)
	b = binary.BigEndian.AppendUint64(b, r.Epoch)
	b = binary.BigEndian.AppendUint32(b, uint32(r.First))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Digests)))
	for _, d := range r.Digests {
		b = append(b, d[:]...)
	}
	final := byte(0)
	if r.Final {
		final = 1
	}
	b = append(b, final)
	b = append(b, r.Key[:]...)
	return frame(appendText(b, string(r.Signature)), start)
}

func decodeRun(body []byte) (piece.DigestRun, error) {
	d := decoder{b: body}
	var r piece.DigestRun
	r.Metadata = piece.Metadata{Length: int64(d.u64()), PieceSize: int64(d.u64()), MediaType: d.text()}
	r.Epoch = d.u64()
	r.First = piece.Index(d.u32())
	n := int64(d.u32())
	if n*int64(len(piece.Digest{})) > int64(len(d.b)) {
		return r, errShortRecord
	}
	r.Digests = make([]piece.Digest, n)
	for k := range r.Digests {
		copy(r.Digests[k][:], d.take(len(piece.Digest{})))
	}
	switch final := d.take(1); {
	case d.bad:
	case final[0] > 1:
		return r, errors.New("a flag that is neither 0 nor 1")
	default:
		r.Final = final[0] == 1
	}
	copy(r.Key[:], d.take(len(r.Key)))
	r.Signature = []byte(d.text())
	if err := d.done(); err != nil {
		return r, err
	}
	return r, r.Check()
}

var errShortRecord = errors.New("length of the record does not match its fields")

// decoder takes fields from the front of b. Once bad, it returns zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.b) {
		d.bad = true
		return make([]byte, min(n, 64))
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.take(8)) }

func (d *decoder) text() string {
	n := int(binary.BigEndian.Uint16(d.take(2)))
	if d.bad || n > len(d.b) {
		d.bad = true
		return ""
	}
	return string(d.take(n))
}

func (d *decoder) done() error {
	if d.bad || len(d.b) > 0 {
		return errShortRecord
	}
	return nil
}

// recorded is a piece in a journal: at is the offset of its record, 0 if there is no valid one.
type recorded struct {
	digest piece.Digest
	at     int64
}

// journalState is a decoded journal.
type journalState struct {
	header
	pieces       []recorded // by index, up to the last recorded one
	runs         []piece.DigestRun
	certificates [][]byte
	// covers is an offset: the pieces recorded before it are on stable storage.
	covers int64
	// end is the offset after the last good record. marked equals end if that record is a mark that covers everything
	// before it, else it is 0.
	end, marked int64
}

// readJournal reads a journal of size bytes up to the first record that is cut off or damaged; end is the offset
// reached. The error wraps errNewer, or errDamaged if the header is bad, or is r's.
func readJournal(r io.ReaderAt, size int64) (*journalState, error) {
	br := bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 64<<10)
	head, err := br.Peek(int(min(size, int64(headerFixed+headerBodyMax))))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h, n, err := decodeHeader(head)
	if err != nil {
		return nil, err
	}
	_, _ = br.Discard(n) // cannot fail after Peek
	c := &journalState{header: h, end: int64(n)}
	var fixed [frameFixed]byte
	var buf []byte
	for {
		left := size - c.end - frameFixed
		if left < 1 {
			return c, nil
		}
		if _, err := io.ReadFull(br, fixed[:]); err != nil {
			return c, unlessEOF(err)
		}
		length := int64(binary.BigEndian.Uint32(fixed[:]))
		if length < 1 || length > min(left, int64(payloadMax)) {
			return c, nil
		}
		if int64(cap(buf)) < length {
			buf = make([]byte, length)
		}
		payload := buf[:length]
		if _, err := io.ReadFull(br, payload); err != nil {
			return c, unlessEOF(err)
		}
		sum := crc32.Update(crc32.Checksum(fixed[:4], castagnoli), castagnoli, payload)
		if sum != binary.BigEndian.Uint32(fixed[4:]) {
			return c, nil
		}
		good, err := c.apply(payload)
		if err != nil {
			return nil, err
		}
		if !good {
			return c, nil
		}
		c.end += frameFixed + length
		if c.marked != 0 {
			c.marked = c.end
		}
	}
}

// unlessEOF returns nil for the end of a file that became shorter during the read: it counts as a torn tail.
func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// apply adds the record at c.end; good is false if the record is invalid.
func (c *journalState) apply(payload []byte) (good bool, err error) {
	c.marked = 0
	d := decoder{b: payload[1:]}
	count := c.facts.Layout().Count()
	switch kind := payload[0]; kind {
	case kindPiece:
		i, digest := int(d.u32()), d.take(len(piece.Digest{}))
		if d.done() != nil || i >= count {
			return false, nil
		}
		if more := i + 1 - len(c.pieces); more > 0 {
			c.pieces = append(c.pieces, make([]recorded, more)...)
		}
		c.pieces[i] = recorded{digest: piece.Digest(digest), at: c.end}
	case kindDrop:
		i := int(d.u32())
		if d.done() != nil || i >= count {
			return false, nil
		}
		if i < len(c.pieces) {
			c.pieces[i] = recorded{}
		}
	case kindRun:
		r, err := decodeRun(d.b)
		if err != nil || r.Metadata.Length != c.facts.Length || r.Metadata.PieceSize != c.facts.PieceSize {
			return false, nil
		}
		c.runs = append(c.runs, r)
	case kindCertificate:
		c.certificates = append(c.certificates, append([]byte(nil), d.b...))
	case kindMark:
		covers := int64(d.u64())
		d.u32()
		if d.done() != nil || covers < 0 || covers > c.end {
			return false, nil
		}
		c.covers = covers
		if covers == c.end {
			c.marked = c.end // the caller moves it to the end of the record
		}
	default:
		if kind < kindOptional {
			return false, fmt.Errorf("%w: record of kind %d", errNewer, kind)
		}
	}
	return true, nil
}

// readSummary reads only the header and the last record. ok is true if that record is a mark that covers everything
// before it; then have is the number of pieces.
func readSummary(r io.ReaderAt, size int64) (h header, have int, ok bool, err error) {
	head := make([]byte, min(size, int64(headerFixed+headerBodyMax)))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return h, 0, false, err
	}
	h, n, err := decodeHeader(head)
	if err != nil || size < int64(n)+markSize {
		return h, 0, false, err
	}
	tail := make([]byte, markSize)
	if _, err := r.ReadAt(tail, size-markSize); err != nil {
		return h, 0, false, err
	}
	d := decoder{b: tail[frameFixed+1:]}
	covers, count := int64(d.u64()), int(d.u32())
	if string(tail) != string(appendMark(nil, covers, count)) ||
		covers != size-markSize || count > h.facts.Layout().Count() {
		return h, 0, false, nil
	}
	return h, count, true, nil
}
