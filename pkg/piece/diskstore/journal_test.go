package diskstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

var sample = header{
	id:    task.ID("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
	facts: piece.Metadata{Length: 950, PieceSize: 100, MediaType: "text/plain"},
}

func sampleRun() piece.DigestRun {
	return piece.DigestRun{
		Metadata: piece.Metadata{Length: 950, PieceSize: 100, MediaType: "other/type"}, Epoch: math.MaxUint64, First: 8,
		Digests: []piece.Digest{{1}, {2}}, Final: true, Key: piece.KeyID{9, 8}, Signature: bytes.Repeat([]byte{7}, 64),
	}
}

func sampleJournal() []byte {
	b := encodeHeader(sample)
	b = appendPiece(b, 3, piece.Digest{3})
	b = appendPiece(b, 9, piece.Digest{9})
	b = appendRun(b, sampleRun())
	b = appendCertificate(b, []byte("der"))
	b = appendMark(b, int64(len(b)), 2)
	b = appendPiece(b, 4, piece.Digest{4})
	b = appendDrop(b, 3)
	return appendPiece(b, 9, piece.Digest{19})
}

func read(t testing.TB, b []byte) *journalState {
	t.Helper()
	c, err := readJournal(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	return c
}

func TestReadJournal(t *testing.T) {
	b := sampleJournal()
	c := read(t, b)
	assert.Equal(t, sample, c.header)
	assert.Equal(t, int64(len(b)), c.end)
	assert.Zero(t, c.marked, "records follow the mark")
	assert.Equal(t, []piece.DigestRun{sampleRun()}, c.runs)
	assert.Equal(t, [][]byte{[]byte("der")}, c.certificates)
	require.Len(t, c.pieces, 10)
	assert.Zero(t, c.pieces[3].at, "dropped")
	assert.Equal(t, piece.Digest{4}, c.pieces[4].digest)
	assert.Greater(t, c.pieces[4].at, c.covers, "after the mark")
	assert.Equal(t, piece.Digest{19}, c.pieces[9].digest, "the last record counts")
	assert.Greater(t, c.pieces[9].at, c.covers)

	b = appendMark(b, int64(len(b)), 2)
	c = read(t, b)
	assert.Equal(t, int64(len(b)), c.marked)
	h, have, ok, err := readSummary(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, 2, have)
	assert.Equal(t, sample, h)
}

// A mark that does not cover everything is no clean end.
func TestPartialMark(t *testing.T) {
	b := encodeHeader(sample)
	covers := int64(len(b))
	b = appendPiece(b, 3, piece.Digest{3})
	b = appendMark(b, covers, 1)
	c := read(t, b)
	assert.Zero(t, c.marked)
	assert.Equal(t, covers, c.covers)
	assert.GreaterOrEqual(t, c.pieces[3].at, c.covers, "unproven")
	_, _, ok, err := readSummary(bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	assert.False(t, ok)
}

// A journal ends at its first invalid record.
func TestJournalEnd(t *testing.T) {
	head := encodeHeader(sample)
	frameOf := func(payload ...byte) []byte {
		b, start := begin(nil, payload[0])
		return frame(append(b, payload[1:]...), start)
	}
	otherMetadata := sampleRun()
	otherMetadata.Metadata.Length++
	notFinal := sampleRun()
	notFinal.Final = false
	for name, record := range map[string][]byte{
		"piece outside":          appendPiece(nil, 10, piece.Digest{}),
		"piece far outside":      appendPiece(nil, math.MaxUint32, piece.Digest{}),
		"drop outside":           appendDrop(nil, 10),
		"short piece":            frameOf(kindPiece, 0, 0, 0, 1, 2),
		"long drop":              frameOf(kindDrop, 0, 0, 0, 1, 2),
		"run of other facts":     appendRun(nil, otherMetadata),
		"dishonest run":          appendRun(nil, notFinal),
		"empty run":              frameOf(kindRun),
		"mark of the future":     appendMark(nil, 1<<40, 1),
		"mark behind itself":     appendMark(nil, int64(len(head))+1, 1),
		"negative mark":          appendMark(nil, -1, 1),
		"nothing":                {0, 0, 0, 0, 0, 0, 0, 0},
		"length of the universe": {255, 255, 255, 255, 0, 0, 0, 0, 1},
		"many digests, no bytes": frameOf(append([]byte{kindRun},
			append(make([]byte, 8+8+2+8+4), 255, 255, 255, 255)...)...),
		"a checksum that is none": append(appendDrop(nil, 1)[:4], 0, 0, 0, 0, kindDrop, 0, 0, 0, 1),
	} {
		b := append(bytes.Clone(head), record...)
		b = appendPiece(b, 5, piece.Digest{5})
		c := read(t, b)
		assert.Equal(t, int64(len(head)), c.end, name)
		assert.Empty(t, c.pieces, name)
		assert.Empty(t, c.runs, name)
	}
}

// A header of no version is damaged; one of a later version is newer.
func TestHeaderErrors(t *testing.T) {
	good := encodeHeader(sample)
	for n := range good {
		_, err := readJournal(bytes.NewReader(good[:n]), int64(n))
		assert.ErrorIs(t, err, errDamaged, "%d of %d bytes", n, len(good))
	}
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		_, err := readJournal(bytes.NewReader(bad), int64(len(bad)))
		want := errDamaged
		if at >= 8 && at < 11 { // the upper bytes of the version, so that it looks much newer
			want = errNewer
		}
		assert.ErrorIs(t, err, want, "byte %d", at)
	}
	newer := bytes.Clone(good)
	binary.BigEndian.PutUint32(newer[8:], journalVersion+1)
	_, err := readJournal(bytes.NewReader(newer), int64(len(newer)))
	assert.ErrorIs(t, err, errNewer)
	_, _, _, err = readSummary(bytes.NewReader(newer), int64(len(newer)))
	assert.ErrorIs(t, err, errNewer)

	wrong := sample
	wrong.facts.PieceSize = 0
	_, _, err = decodeHeader(encodeHeader(wrong))
	assert.ErrorIs(t, err, piece.ErrInvalidMetadata)
	wrong = sample
	wrong.id = "../../etc/passwd"
	_, _, err = decodeHeader(encodeHeader(wrong))
	assert.ErrorIs(t, err, task.ErrInvalidID)
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeHeader(sample))
	f.Add(sampleJournal())
	f.Add(appendMark(encodeHeader(sample), int64(len(encodeHeader(sample))), 0))
	f.Add(append(sampleJournal(), 0, 0, 0, 99, 1, 2, 3, 4, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A fuzzer cannot guess checksums, so correct them.
		at := 0
		if _, n, err := decodeHeader(b); err == nil {
			at = n
		} else if n = len(encodeHeader(sample)); len(b) > n {
			b = append(encodeHeader(sample), b[n:]...)
			at = n
		}
		for at > 0 && len(b)-at > frameFixed {
			n := int(binary.BigEndian.Uint32(b[at:]) % 256)
			if n == 0 || at+frameFixed+n > len(b) {
				break
			}
			rest := bytes.Clone(b[at+frameFixed+n:])
			b = append(frame(b[:at+frameFixed+n], at), rest...)
			at += frameFixed + n
		}
		c, err := readJournal(bytes.NewReader(b), int64(len(b)))
		h, have, ok, sumErr := readSummary(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, errNewer) && !errors.Is(err, errDamaged) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if sumErr != nil || h != c.header || have < 0 {
			t.Fatalf("summary %+v %v, journal %+v", h, sumErr, c.header)
		}
		if !ok && c.marked == int64(len(b)) {
			t.Fatal("the summary misses a clean end")
		}
		if c.end > int64(len(b)) || c.covers > c.end || (c.marked != 0 && c.marked != c.end) {
			t.Fatalf("end %d, covers %d, marked %d of %d bytes", c.end, c.covers, c.marked, len(b))
		}
		if len(c.pieces) > c.facts.Layout().Count() {
			t.Fatalf("%d pieces of %d", len(c.pieces), c.facts.Layout().Count())
		}
		for i, r := range c.pieces {
			if r.at != 0 && !bytes.Equal(b[r.at:][:frameFixed+5+len(r.digest)],
				appendPiece(nil, piece.Index(i), r.digest)) {
				t.Fatalf("piece %d is not what the journal says at %d", i, r.at)
			}
		}
		for _, run := range c.runs {
			if err := run.Check(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(b, appendRun(nil, run)) {
				t.Fatal("a run that is not in the journal")
			}
		}
		again, err := readJournal(bytes.NewReader(b[:c.end]), c.end)
		if err != nil || again.end != c.end || again.covers != c.covers || len(again.runs) != len(c.runs) {
			t.Fatalf("what was cut off counted: %v", err)
		}
	})
}
