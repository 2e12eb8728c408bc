package wire

import (
	"bufio"
	"bytes"
	"io"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
)

// over is a Conn that reads and writes memory.
func over(in []byte, out io.Writer) *Conn {
	c := &Conn{br: bufio.NewReaderSize(bytes.NewReader(in), 16<<10), bw: bufio.NewWriterSize(out, 16<<10)}
	c.dec = pp.Decoder{R: c.br, MaxLength: controlMax}
	return c
}

var fixedMessages = map[pp.MessageType]Message{
	pp.Have:    {Type: Have, Index: 1<<32 - 1},
	pp.Suggest: {Type: Suggest, Index: 7},
	pp.Request: {Type: Request, Index: 3, Begin: 256 << 10, Length: 4 << 20},
	pp.Cancel:  {Type: Cancel, Index: 3, Begin: 1, Length: 2},
	pp.Reject:  {Type: Reject, Index: 0, Begin: 1<<32 - 1, Length: 0},
}

func TestMessagesOfFixedSizeAreTheCodecsToTheByte(t *testing.T) {
	for kind, m := range fixedMessages {
		var want, got bytes.Buffer
		codec := pp.Message{Type: kind, Index: pp.Integer(m.Index), Begin: pp.Integer(m.Begin),
			Length: pp.Integer(m.Length)}
		require.NoError(t, codec.WriteTo(&want))
		c := over(want.Bytes(), &got)
		read, err := c.Next()
		require.NoError(t, err, "%v", kind)
		assert.Equal(t, m, read, "%v", kind)
		require.NoError(t, c.Send(m))
		require.NoError(t, c.Flush())
		assert.Equal(t, want.Bytes(), got.Bytes(), "%v", kind)
	}
}

func TestAMessageOfAnotherSizeThanItsTypesIsRefused(t *testing.T) {
	for kind, m := range fixedMessages {
		var b bytes.Buffer
		c := over(nil, &b)
		require.NoError(t, c.Send(m))
		require.NoError(t, c.Flush())
		wrong := append(b.Bytes(), 0)
		wrong[3]++
		_, err := over(wrong, nil).Next()
		assert.ErrorIs(t, err, ErrProtocol, "%v", kind)

		_, err = over(b.Bytes()[:8], nil).Next()
		assert.Error(t, err, "%v that is cut", kind)
	}
}

func TestHavesThatCameTogetherAreSeenBeforeTheyAreRead(t *testing.T) {
	var b bytes.Buffer
	c := over(nil, &b)
	for i := range piece.Index(3) {
		require.NoError(t, c.Send(Message{Type: Have, Index: i}))
	}
	require.NoError(t, c.Send(Message{Type: Request, Length: 1}))
	require.NoError(t, c.Send(Message{Type: Have}))
	require.NoError(t, c.Flush())
	c = over(b.Bytes()[:b.Len()-1], nil) // the last have is not here whole
	assert.False(t, c.HaveNext(), "nothing was read yet")
	var next []bool
	for range 4 {
		_, err := c.Next()
		require.NoError(t, err)
		next = append(next, c.HaveNext())
	}
	assert.Equal(t, []bool{true, true, false, false}, next)
}

func TestAHaveCostsNoMemory(t *testing.T) {
	var b bytes.Buffer
	b.Grow(64 << 10)
	c := over(nil, &b)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if c.Send(Message{Type: Have, Index: 1}) != nil || c.Flush() != nil {
			t.Fail()
		}
	}))
	c = over(b.Bytes(), nil)
	assert.Zero(t, testing.AllocsPerRun(90, func() {
		if m, err := c.Next(); err != nil || m.Index != 1 {
			t.Fail()
		}
	}))
}
