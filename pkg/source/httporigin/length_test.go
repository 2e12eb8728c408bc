package httporigin_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source"
)

// The known length bounds the bytes that the client reads, for every framing and encoding of the origin.
func TestKnownLength(t *testing.T) {
	const n = 1000
	content := bytes.Repeat([]byte("0123456789"), n/10)
	chunked := func(w http.ResponseWriter, b []byte) {
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(b)
	}
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		zw := gzip.NewWriter(&out)
		_, _ = zw.Write(b)
		_ = zw.Close()
		return out.Bytes()
	}
	var sent atomic.Int64
	endless := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		for block := make([]byte, 64<<10); ; {
			k, err := w.Write(block)
			if sent.Add(int64(k)); err != nil || sent.Load() > 1<<30 {
				return
			}
		}
	}
	type want struct {
		got  string // in the error, empty for none
		read int    // bytes that the reader gets
	}
	inChunks := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { chunked(w, b) }
	}
	for name, c := range map[string]struct {
		offset int64
		h      http.HandlerFunc
		want   want
	}{
		"chunked, as long":       {0, inChunks(content), want{"", n}},
		"chunked, one byte more": {0, inChunks(append(content[:n:n], 'x')), want{"at least 1001 bytes", n}},
		"chunked, one byte less": {0, inChunks(content[:n-1]), want{"has 999 bytes", n - 1}},
		"chunked, nothing":       {0, inChunks(nil), want{"has 0 bytes", 0}},
		"chunked without end":    {0, endless, want{"at least 1001 bytes", n}},
		"the rest, without end":  {990, endless, want{"at least 1001 bytes", 10}},
		"declared, more": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10487314000")
			_ = http.NewResponseController(w).Flush()
		}, want{"has 10487314000 bytes", 0}},
		"declared, one byte less": {0, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(content[:n-1])
		}, want{"has 999 bytes", 0}},
		"another total in Content-Range": {10, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-19/1001")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(content[10:20])
		}, want{"has 1001 bytes", 0}},
		"no total in Content-Range": {990, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 990-999/*")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(content[990:])
		}, want{"", 10}},
		"gzip, as long": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			chunked(w, packed(content))
		}, want{"", n}},
		"gzip, a bomb": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed(make([]byte, 10<<20)))
		}, want{"at least 1001 bytes", n}},
		"gzip, one byte less": {0, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(packed(content[:n-1]))
		}, want{"has 999 bytes", n - 1}},
	} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			s := serve(t, c.h)
			spec := file(s.URL + "/f?signature=secret")
			spec.Length = n
			var b []byte
			res, err := origin(t, nil).Open(t.Context(), spec, c.offset)
			if err == nil {
				assert.EqualValues(t, n, res.Length)
				b, err = io.ReadAll(res.Body)
				res.Body.Close()
			}
			assert.Len(t, b, c.want.read)
			assert.Less(t, sent.Load(), int64(64<<20), "of an endless body, the client reads no more than sockets hold")
			if c.want.got == "" {
				require.NoError(t, err)
				return
			}
			var wrong *source.LengthError
			require.ErrorAs(t, err, &wrong)
			assert.ErrorContains(t, err, c.want.got)
			assert.ErrorContains(t, err, "1000 were expected")
			assert.NotContains(t, err.Error(), "secret")
		})
	}
}

// A body of HTTP/1.0 ends with its connection and may be cut, so the error invites a resumption.
func TestHTTP10BodyCut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = fmt.Fprint(c, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"+strconv.Itoa(12345))
			c.Close()
		}
	}()
	spec := file("http://" + l.Addr().String() + "/f")
	spec.Length = 1000
	res, err := origin(t, nil).Open(t.Context(), spec, 0)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	assert.Len(t, b, 5)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.ErrorContains(t, err, "byte 5 of 1000")
}
