// Package sourcetest is the contract of [source.Origin] as a suite that every implementation
// runs.
//
// The server behind an origin lies, cuts, stalls and redirects; whatever it does, a reader
// gets the right bytes from the asked offset on or an error, and no secret reaches another
// host or a message. Start at [Run].
package sourcetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// The timeouts of tested origins: soon where a server is silent, beyond what a slow one takes
// between two of its bytes, and late where a busy machine is not to be taken for either.
const (
	soon   = 600 * time.Millisecond
	beyond = 2 * time.Second
	late   = time.Minute
)

// Loopback is what the tested origin must be allowed to connect to.
var Loopback = netip.MustParsePrefix("127.0.0.0/8")

// Secret is inside of the Authorization, and must never leave the server's own host.
const Secret = "hunter2"

// Subject is an origin under test.
type Subject struct {
	Origin source.Origin
	// Spec names the server's content, whose path does not matter.
	Spec task.Spec
	// DigestNamed says that the content's name vouches for its bytes, so that validators
	// play no part.
	DigestNamed bool
}

// Setup makes an origin that brings the server's content, with [Server.Timeout] and [Loopback].
type Setup func(t *testing.T, s *Server) Subject

// Server is the other end: it answers /v2/ as a registry without credentials does, and
// everything else as the test says.
type Server struct {
	*httptest.Server
	// Content of whatever is asked for.
	Content []byte
	// Timeout is what the tested origin must take as its timeouts for headers and idle bodies.
	Timeout time.Duration

	// mu is held to look at the fields below.
	mu       sync.Mutex
	handle   http.HandlerFunc
	requests []*http.Request
}

// NewServer starts a server that behaves well.
func NewServer(t *testing.T) *Server {
	s := &Server{Content: make([]byte, 300<<10), Timeout: late}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(s.Content)
	s.handle = s.good
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, r)
		handle := s.handle
		s.mu.Unlock()
		handle(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// On sets how the server answers from now on.
func (s *Server) On(handle http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle, s.requests = handle, nil
}

// Requests are those since the last On.
func (s *Server) Requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

const mediaType = "application/x-test; charset=none"

// good honours Range and If-Range, and tells length and validator.
func (s *Server) good(w http.ResponseWriter, r *http.Request) { s.version(w, r, `"v1"`) }

func (s *Server) version(w http.ResponseWriter, r *http.Request, etag string) {
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", mediaType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.Content))
}

// Run tests an origin against the contract.
func Run(t *testing.T, setup Setup) {
	within := func(timeout time.Duration, name string, test func(t *testing.T, s *Server, sub Subject)) {
		t.Run(name, func(t *testing.T) {
			s := NewServer(t)
			s.Timeout = timeout
			sub := setup(t, s)
			test(t, s, sub)
		})
	}
	each := func(name string, test func(t *testing.T, s *Server, sub Subject)) { within(late, name, test) }
	read := func(t *testing.T, sub Subject, offset int64) ([]byte, *source.Response, error) {
		t.Helper()
		res, err := sub.Origin.Open(t.Context(), sub.Spec, offset)
		if err != nil {
			assert.NotContains(t, err.Error(), Secret)
			return nil, nil, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			assert.NotContains(t, err.Error(), Secret)
		}
		return b, res, err
	}
	right := func(t *testing.T, s *Server, sub Subject, offset int64) *source.Response {
		t.Helper()
		b, res, err := read(t, sub, offset)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.Content[offset:], b), "%d bytes that are not the content's from %d on", len(b), offset)
		return res
	}
	// prefix wants an error, and before it nothing but right bytes.
	prefix := func(t *testing.T, s *Server, sub Subject, offset int64) ([]byte, error) {
		t.Helper()
		b, _, err := read(t, sub, offset)
		require.Error(t, err)
		require.True(t, bytes.HasPrefix(s.Content[offset:], b), "%d bytes that are not the content's from %d on", len(b), offset)
		return b, err
	}

	each("the whole comes by one GET without a Range", func(t *testing.T, s *Server, sub Subject) {
		s.On(s.good)
		res := right(t, s, sub, 0)
		assert.EqualValues(t, len(s.Content), res.Length)
		assert.Equal(t, mediaType, res.MediaType)
		assert.Equal(t, `"v1"`, res.Validator)
		require.Len(t, s.Requests(), 1)
		assert.Equal(t, "identity", s.Requests()[0].Header.Get("Accept-Encoding"))
		assert.Empty(t, s.Requests()[0].Header.Get("Range"))
	})
	each("a Range that is honoured brings the rest alone", func(t *testing.T, s *Server, sub Subject) {
		for _, offset := range []int64{1, 100_000, int64(len(s.Content)) - 1} {
			s.On(s.good)
			res := right(t, s, sub, offset)
			assert.EqualValues(t, len(s.Content), res.Length)
			require.Len(t, s.Requests(), 1)
			assert.Equal(t, fmt.Sprintf("bytes=%d-", offset), s.Requests()[0].Header.Get("Range"))
		}
	})
	each("a Range that is answered with 200 begins at the offset too", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			s.good(w, r)
		})
		res := right(t, s, sub, 100_000)
		assert.EqualValues(t, len(s.Content), res.Length)
	})
	each("the end of the content is an empty rest", func(t *testing.T, s *Server, sub Subject) {
		right(t, s, sub, int64(len(s.Content)))
	})
	each("an offset beyond the end is an error", func(t *testing.T, s *Server, sub Subject) {
		_, _, err := read(t, sub, int64(len(s.Content))+1)
		require.Error(t, err)
	})
	each("a false 416 is no obstacle", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			s.good(w, r)
		})
		right(t, s, sub, 1000)
	})
	for name, contentRange := range map[string]string{
		"a Content-Range that begins elsewhere": "bytes 5001-307199/307200",
		"a 206 without a Content-Range":         "",
		"a Content-Range that is none":          "bytes 5000-/307200",
		"a Content-Range in another unit":       "lines 5000-307199/307200",
		"a Content-Range that ends before it":   "bytes 5000-4999/307200",
		"a Content-Range beyond its total":      "bytes 5000-307200/307200",
		"a Content-Range of absurd size":        "bytes 5000-99999999999999999999/99999999999999999999",
	} {
		each(name+" is an error", func(t *testing.T, s *Server, sub Subject) {
			s.On(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"v1"`)
				if contentRange != "" {
					w.Header().Set("Content-Range", contentRange)
				}
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(s.Content[5000+strings.Count(contentRange, "5001"):])
			})
			b, _, err := read(t, sub, 5000)
			require.Error(t, err)
			assert.Empty(t, b)
		})
	}
	each("a total that is too large ends in an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5000-%d/%d", len(s.Content)-1, len(s.Content)+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(s.Content[5000:])
		})
		prefix(t, s, sub, 5000)
	})
	each("more bytes than told are never given", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5000-%d/%d", len(s.Content)-1, len(s.Content)))
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(append(bytes.Clone(s.Content[5000:]), "more"...))
		})
		prefix(t, s, sub, 5000)
	})
	each("a range that is shorter than asked ends as cut", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=5000-9999")
			s.good(w, r)
		})
		b, err := prefix(t, s, sub, 5000)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Len(t, b, 5000)
	})
	each("a 206 to a request without Range is an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=0-")
			s.good(w, r)
		})
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
	})
	for _, chunked := range []bool{false, true} {
		each(fmt.Sprintf("a cut body ends in an unexpected EOF (chunked %t)", chunked), func(t *testing.T, s *Server, sub Subject) {
			s.On(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"v1"`)
				if !chunked {
					w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
				}
				_, _ = w.Write(s.Content[:100_000])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			b, err := prefix(t, s, sub, 0)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			assert.Len(t, b, 100_000)
		})
	}
	each("a body cut while it is skipped ends in an unexpected EOF", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content[:100_000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		b, err := prefix(t, s, sub, 200_000)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Empty(t, b)
	})
	each("a body without a length comes whole, and its rest too", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(s.Content)
		})
		assert.EqualValues(t, -1, right(t, s, sub, 0).Length)
		right(t, s, sub, 100_000)
	})
	each("a length that is not the known one is an error", func(t *testing.T, s *Server, sub Subject) {
		sub.Spec.Length = int64(len(s.Content)) - 1
		for _, offset := range []int64{0, 1000} {
			_, _, err := read(t, sub, offset)
			require.Error(t, err)
		}
		sub.Spec.Length = int64(len(s.Content))
		right(t, s, sub, 1000)
	})
	each("gzip that nobody asked for is decoded", func(t *testing.T, s *Server, sub Subject) {
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		_, _ = zw.Write(s.Content)
		require.NoError(t, zw.Close())
		cut := packed.Len()
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Encoding", "gzip")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed.Bytes()[:cut]))
		})
		res := right(t, s, sub, 0)
		assert.EqualValues(t, -1, res.Length, "the length told is that of the encoded bytes")
		right(t, s, sub, 100_000)
		cut -= 100
		_, err := prefix(t, s, sub, 0)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
	each("gzip of the known length is the content itself", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content)
		})
		sub.Spec.Length = int64(len(s.Content))
		right(t, s, sub, 0)
	})
	each("another encoding is an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			s.good(w, r)
		})
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
	})
	each("content that changed is never mixed", func(t *testing.T, s *Server, sub Subject) {
		sub.Spec.Validator = `"v1"`
		right(t, s, sub, 1000)
		for name, handle := range map[string]http.HandlerFunc{
			"honours If-Range":           func(w http.ResponseWriter, r *http.Request) { s.version(w, r, `"v2"`) },
			"ignores If-Range":           func(w http.ResponseWriter, r *http.Request) { r.Header.Del("If-Range"); s.version(w, r, `"v2"`) },
			"has no validators any more": func(w http.ResponseWriter, r *http.Request) { r.Header.Del("Range"); s.version(w, r, "") },
		} {
			s.On(handle)
			_, _, err := read(t, sub, 1000)
			if sub.DigestNamed {
				require.NoError(t, err, name)
				continue
			}
			var changed *source.ChangedError
			require.ErrorAs(t, err, &changed, name)
			assert.Equal(t, `"v1"`, changed.Was)
			_, _, err = read(t, sub, 0)
			require.ErrorAs(t, err, &changed, name)
		}
		if !sub.DigestNamed {
			sub.Spec.Validator = `W/"weak"`
			s.On(func(w http.ResponseWriter, r *http.Request) { s.version(w, r, `W/"weak"`) })
			right(t, s, sub, 1000)
			assert.Empty(t, s.Requests()[0].Header.Get("If-Range"), "a weak validator vouches for no range")
		}
	})
	each("a redirect is followed and no secret with it", func(t *testing.T, s *Server, sub Subject) {
		sub.Spec.Authorization = "Bearer " + Secret
		sub.Spec.Header = map[string]secret.String{"X-Secret": Secret, "Cookie": "c=" + Secret}
		other := NewServer(t)
		other.On(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/back" {
				http.Redirect(w, r, s.URL+"/home", http.StatusFound)
				return
			}
			other.good(w, r)
		})
		for _, to := range []string{"/direct?signature=" + Secret, "/back"} {
			s.On(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/home" {
					s.good(w, r)
					return
				}
				assert.Contains(t, r.Header.Get("Authorization"), Secret)
				http.Redirect(w, r, other.URL+to, http.StatusTemporaryRedirect)
			})
			right(t, s, sub, 1000)
			last := s.Requests()[len(s.Requests())-1]
			for _, r := range append(other.Requests(), last) {
				if r == last && last.URL.Path != "/home" {
					continue
				}
				assert.Equal(t, "bytes=1000-", r.Header.Get("Range"))
				for k, v := range r.Header {
					assert.NotContains(t, strings.Join(v, " "), Secret, "header %s at %s", k, r.URL.Path)
				}
			}
		}
		// What goes wrong over there is told without the signature.
		other.On(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
		s.On(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"/?signature="+Secret, http.StatusTemporaryRedirect)
		})
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
		other.Close()
		_, _, err = read(t, sub, 0)
		require.Error(t, err)
	})
	each("redirects come to an end", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.URL+"/again?signature="+Secret, http.StatusFound)
		})
		_, _, err := read(t, sub, 0)
		require.ErrorContains(t, err, "redirects")
		assert.LessOrEqual(t, len(s.Requests()), 11)
	})
	for _, status := range []int{400, 401, 403, 404, 429, 500, 503} {
		each(fmt.Sprintf("a refusal is told in the origin's words (%d)", status), func(t *testing.T, s *Server, sub Subject) {
			sub.Spec.Authorization = "Bearer " + Secret
			words := strings.Repeat("no such thing. ", api.FailureMax)
			s.On(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				w.Header().Set("Retry-After", "7")
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/token"`)
				w.WriteHeader(status)
				_, _ = io.WriteString(w, words)
			})
			_, _, err := read(t, sub, 0)
			var refused *source.StatusError
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, status, refused.Status)
			assert.Equal(t, words[:api.FailureMax], string(refused.Body))
			f := source.Failure(err)
			assert.Equal(t, status, f.Status)
			assert.Equal(t, map[string]string{"Content-Type": "text/plain", "Retry-After": "7", "Www-Authenticate": `Bearer realm="https://auth.test/token"`}, f.Header)
			assert.NotContains(t, f.Message, Secret)
			assert.Len(t, s.Requests(), 1, "the origin is asked once")
		})
	}
	within(soon, "silence before the headers ends as a timeout", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
		assert.Equal(t, http.StatusGatewayTimeout, source.Failure(err).Status, "%v", err)
	})
	within(soon, "silence in the body ends as a timeout", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content[:100_000])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		b, err := prefix(t, s, sub, 0)
		assert.Len(t, b, 100_000)
		assert.Equal(t, http.StatusGatewayTimeout, source.Failure(err).Status, "%v", err)
	})
	within(soon, "silence in a refusal is a refusal", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		_, _, err := read(t, sub, 0)
		assert.Equal(t, http.StatusForbidden, source.Failure(err).Status, "%v", err)
	})
	within(beyond, "a slow origin is no silent one", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			for i := 0; i < len(s.Content); i += len(s.Content) / 10 {
				_, _ = w.Write(s.Content[i:min(len(s.Content), i+len(s.Content)/10)])
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(s.Timeout / 8):
				case <-r.Context().Done():
				}
			}
		})
		right(t, s, sub, 0)
	})
	each("cancelling ends the body, and closing ends the request", func(t *testing.T, s *Server, sub Subject) {
		gone := make(chan struct{}, 2)
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			_, _ = w.Write(s.Content[:1])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			gone <- struct{}{}
		})
		ctx, cancel := context.WithCancel(t.Context())
		res, err := sub.Origin.Open(ctx, sub.Spec, 0)
		require.NoError(t, err)
		_, err = io.ReadFull(res.Body, make([]byte, 1))
		require.NoError(t, err)
		cancel()
		_, err = res.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, ignoreCancel(res.Body.Close()))
		<-gone
		res, err = sub.Origin.Open(t.Context(), sub.Spec, 0)
		require.NoError(t, err)
		require.NoError(t, ignoreCancel(res.Body.Close()))
		<-gone
		_, err = res.Body.Read(make([]byte, 1))
		require.Error(t, err)
	})
	each("nobody there is a bad gateway", func(t *testing.T, s *Server, sub Subject) {
		s.Close()
		_, _, err := read(t, sub, 0)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		assert.Equal(t, http.StatusBadGateway, source.Failure(err).Status)
	})
	each("bodies of many readers do not touch each other", func(t *testing.T, s *Server, sub Subject) {
		var readers sync.WaitGroup
		for i := range 8 {
			readers.Go(func() {
				offset := int64(i) * 30_000
				b, _, err := read(t, sub, offset)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(s.Content[offset:], b))
			})
		}
		readers.Wait()
	})
}

func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
