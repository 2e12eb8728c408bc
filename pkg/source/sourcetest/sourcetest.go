// Package sourcetest tests the contract of [source.Origin]; every implementation runs it.
//
// The server behind the origin sends wrong bytes, cuts bodies, stalls and redirects. A reader always gets
// either the right bytes from the requested offset on or an error, and a secret never reaches another host
// or an error message. Start at [Run].
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

// The timeouts of tested origins: soon for a silent server, beyond for a slow server (longer than its pauses),
// and late for all other tests, so that a busy machine causes no timeout.
const (
	soon   = 600 * time.Millisecond
	beyond = 2 * time.Second
	late   = time.Minute
)

// Loopback is the range that the tested origin must be allowed to connect to.
var Loopback = netip.MustParsePrefix("127.0.0.0/8")

// Secret is part of the Authorization, and must never leave the server's own host.
const Secret = "hunter2"

// Subject is an origin under test.
type Subject struct {
	Origin source.Origin
	// Spec names the server's file; its path does not matter.
	Spec task.Spec
	// DigestNamed is true if the file is named by its digest, so that validators play no part.
	DigestNamed bool
}

// Setup makes an origin that opens the server's file, with [Server.Timeout] and [Loopback].
type Setup func(t *testing.T, s *Server) Subject

// Server is the web server of a test. It answers /v2/ like a registry without credentials, and every other
// path as the test sets.
type Server struct {
	*httptest.Server
	// Content of every path.
	Content []byte
	// Timeout is the tested origin's timeout for headers and for idle bodies.
	Timeout time.Duration

	// mu guards the fields below.
	mu       sync.Mutex
	handle   http.HandlerFunc
	requests []*http.Request
}

// NewServer starts a server that answers correctly.
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

// On sets the handler for the requests from now on.
func (s *Server) On(handle http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle, s.requests = handle, nil
}

// Requests returns the requests since the last On.
func (s *Server) Requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

const mediaType = "application/x-test; charset=none"

// good honours Range and If-Range, and sends length and validator.
func (s *Server) good(w http.ResponseWriter, r *http.Request) { s.version(w, r, `"v1"`) }

func (s *Server) version(w http.ResponseWriter, r *http.Request, etag string) {
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", mediaType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.Content))
}

// Run tests an origin against the contract.
func Run(t *testing.T, setup Setup) {
	c := contract{t, setup}
	c.ranges()
	c.falseRanges()
	c.lengths()
	c.encodings()
	c.versions()
	c.redirects()
	c.errorAnswers()
	c.silence()
	c.ends()
}

// contract runs the tests of one origin.
type contract struct {
	*testing.T
	setup Setup
}

type test = func(t *testing.T, s *Server, sub Subject)

// within runs a test with a server and an origin of its own, whose timeouts are timeout.
func (c contract) within(timeout time.Duration, name string, run test) {
	c.Run(name, func(t *testing.T) {
		s := NewServer(t)
		s.Timeout = timeout
		sub := c.setup(t, s)
		run(t, s, sub)
	})
}

// each runs a test whose origin meets no timeout.
func (c contract) each(name string, run test) { c.within(late, name, run) }

// read reads the body from an offset on. No error may hold the Secret.
func read(t *testing.T, sub Subject, offset int64) ([]byte, *source.Response, error) {
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

// mustRead requires exactly the file's bytes from an offset on.
func mustRead(t *testing.T, s *Server, sub Subject, offset int64) *source.Response {
	t.Helper()
	b, res, err := read(t, sub, offset)
	require.NoError(t, err)
	require.True(t, bytes.Equal(s.Content[offset:], b), "%d bytes that differ from the file's from %d on",
		len(b), offset)
	return res
}

// mustFail requires an error, and only right bytes before it.
func mustFail(t *testing.T, s *Server, sub Subject, offset int64) ([]byte, error) {
	t.Helper()
	b, _, err := read(t, sub, offset)
	require.Error(t, err)
	right := bytes.HasPrefix(s.Content[offset:], b)
	require.True(t, right, "%d bytes that differ from the file's from %d on", len(b), offset)
	return b, err
}

// ranges tests the offset, and how an origin may treat a Range.
func (c contract) ranges() {
	c.each("the whole file needs one GET without a Range", func(t *testing.T, s *Server, sub Subject) {
		s.On(s.good)
		res := mustRead(t, s, sub, 0)
		assert.EqualValues(t, len(s.Content), res.Length)
		assert.Equal(t, mediaType, res.MediaType)
		assert.Equal(t, `"v1"`, res.Validator)
		require.Len(t, s.Requests(), 1)
		assert.Equal(t, "identity", s.Requests()[0].Header.Get("Accept-Encoding"))
		assert.Empty(t, s.Requests()[0].Header.Get("Range"))
	})
	c.each("a Range that is honoured returns only the rest", func(t *testing.T, s *Server, sub Subject) {
		for _, offset := range []int64{1, 100_000, int64(len(s.Content)) - 1} {
			s.On(s.good)
			res := mustRead(t, s, sub, offset)
			assert.EqualValues(t, len(s.Content), res.Length)
			require.Len(t, s.Requests(), 1)
			assert.Equal(t, fmt.Sprintf("bytes=%d-", offset), s.Requests()[0].Header.Get("Range"))
		}
	})
	c.each("a body starts at the offset even after a 200", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			s.good(w, r)
		})
		res := mustRead(t, s, sub, 100_000)
		assert.EqualValues(t, len(s.Content), res.Length)
	})
	c.each("the rest at the end of the file is empty", func(t *testing.T, s *Server, sub Subject) {
		mustRead(t, s, sub, int64(len(s.Content)))
	})
	c.each("an offset beyond the end is an error", func(t *testing.T, s *Server, sub Subject) {
		_, _, err := read(t, sub, int64(len(s.Content))+1)
		require.Error(t, err)
	})
	c.each("a false 416 is retried without a Range", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			s.good(w, r)
		})
		mustRead(t, s, sub, 1000)
	})
}

// falseRanges tests partial answers that contradict the request or themselves.
func (c contract) falseRanges() {
	for name, contentRange := range map[string]string{
		"a Content-Range that begins elsewhere": "bytes 5001-307199/307200",
		"a 206 without a Content-Range":         "",
		"an incomplete Content-Range":           "bytes 5000-/307200",
		"a Content-Range in another unit":       "lines 5000-307199/307200",
		"a Content-Range that ends before it":   "bytes 5000-4999/307200",
		"a Content-Range beyond its total":      "bytes 5000-307200/307200",
		"a Content-Range of absurd size":        "bytes 5000-99999999999999999999/99999999999999999999",
	} {
		c.each(name+" is an error", func(t *testing.T, s *Server, sub Subject) {
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
	c.each("a total that is too large ends in an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5000-%d/%d", len(s.Content)-1, len(s.Content)+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(s.Content[5000:])
		})
		_, _ = mustFail(t, s, sub, 5000)
	})
	c.each("bytes beyond the declared length are never returned", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5000-%d/%d", len(s.Content)-1, len(s.Content)))
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(append(bytes.Clone(s.Content[5000:]), "more"...))
		})
		_, _ = mustFail(t, s, sub, 5000)
	})
	c.each("a range that is shorter than requested ends as cut", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=5000-9999")
			s.good(w, r)
		})
		b, err := mustFail(t, s, sub, 5000)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Len(t, b, 5000)
	})
	c.each("a 206 to a request without Range is an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=0-")
			s.good(w, r)
		})
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
	})
}

// lengths tests bodies that are cut, and lengths that are absent or wrong.
func (c contract) lengths() {
	for _, chunked := range []bool{false, true} {
		name := fmt.Sprintf("a cut body ends in an unexpected EOF (chunked %t)", chunked)
		c.each(name, func(t *testing.T, s *Server, sub Subject) {
			s.On(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", `"v1"`)
				if !chunked {
					w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
				}
				_, _ = w.Write(s.Content[:100_000])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			b, err := mustFail(t, s, sub, 0)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			assert.Len(t, b, 100_000)
		})
	}
	c.each("a body cut while it is skipped ends in an unexpected EOF", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content[:100_000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		b, err := mustFail(t, s, sub, 200_000)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Empty(t, b)
	})
	c.each("a body without a length is read whole, and so is its rest", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(s.Content)
		})
		assert.EqualValues(t, -1, mustRead(t, s, sub, 0).Length)
		mustRead(t, s, sub, 100_000)
	})
	c.each("a length other than the known one is an error", func(t *testing.T, s *Server, sub Subject) {
		sub.Spec.Length = int64(len(s.Content)) - 1
		for _, offset := range []int64{0, 1000} {
			_, _, err := read(t, sub, offset)
			require.Error(t, err)
		}
		sub.Spec.Length = int64(len(s.Content))
		mustRead(t, s, sub, 1000)
	})
}

// encodings tests origins that encode the file.
func (c contract) encodings() {
	c.each("unrequested gzip is decoded", func(t *testing.T, s *Server, sub Subject) {
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		_, _ = zw.Write(s.Content)
		require.NoError(t, zw.Close())
		cut := packed.Len()
		// A blob can be a gzip file itself, so that the first answer may be taken for it. Its digest is then wrong, and
		// the caller asks once more.
		first := func() {
			if sub.DigestNamed {
				_, _, _ = read(t, sub, 0)
			}
		}
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Encoding", "gzip")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed.Bytes()[:cut]))
		})
		first()
		res := mustRead(t, s, sub, 0)
		assert.EqualValues(t, -1, res.Length, "the declared length counts encoded bytes")
		mustRead(t, s, sub, 100_000)
		cut -= 100
		first()
		_, err := mustFail(t, s, sub, 0)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
	c.each("gzip of the known length is the file itself", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content)
		})
		sub.Spec.Length = int64(len(s.Content))
		mustRead(t, s, sub, 0)
	})
	c.each("another encoding is an error", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			s.good(w, r)
		})
		if sub.DigestNamed {
			mustRead(t, s, sub, 0) // the digest decides
			return
		}
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
	})
	c.each("bytes that are no gzip are the file whatever they are labelled", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Encoding", "x-gzip")
			_, _ = w.Write(s.Content)
		})
		mustRead(t, s, sub, 0)
	})
}

// versions tests a file that changes.
func (c contract) versions() {
	c.each("two versions of a file are never mixed", func(t *testing.T, s *Server, sub Subject) {
		sub.Spec.Validator = `"v1"`
		mustRead(t, s, sub, 1000)
		for name, handle := range map[string]http.HandlerFunc{
			"honours If-Range": func(w http.ResponseWriter, r *http.Request) { s.version(w, r, `"v2"`) },
			"ignores If-Range": func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("If-Range")
				s.version(w, r, `"v2"`)
			},
			"sends no validator any more": func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("Range")
				s.version(w, r, "")
			},
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
			mustRead(t, s, sub, 1000)
			assert.Empty(t, s.Requests()[0].Header.Get("If-Range"), "If-Range needs a strong validator")
		}
	})
}

// redirects tests redirects, which carry no secret.
func (c contract) redirects() {
	c.each("a redirect is followed without secrets", func(t *testing.T, s *Server, sub Subject) {
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
			mustRead(t, s, sub, 1000)
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
		// An error of the other host does not print the signature.
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
	c.each("the number of redirects is bounded", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.URL+"/again?signature="+Secret, http.StatusFound)
		})
		_, _, err := read(t, sub, 0)
		require.ErrorContains(t, err, "redirects")
		assert.LessOrEqual(t, len(s.Requests()), 11)
	})
}

// errorAnswers tests error answers of the origin.
func (c contract) errorAnswers() {
	for _, status := range []int{400, 401, 403, 404, 429, 500, 503} {
		c.each(fmt.Sprintf("the origin's error answer is returned (%d)", status),
			func(t *testing.T, s *Server, sub Subject) {
				sub.Spec.Authorization = "Bearer " + Secret
				message := strings.Repeat("no such thing. ", api.FailureMax)
				s.On(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "text/plain")
					w.Header().Set("Retry-After", "7")
					w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.test/token"`)
					w.WriteHeader(status)
					_, _ = io.WriteString(w, message)
				})
				_, _, err := read(t, sub, 0)
				var refused *source.StatusError
				require.ErrorAs(t, err, &refused)
				assert.Equal(t, status, refused.Status)
				assert.Equal(t, message[:api.FailureMax], string(refused.Body))
				f := source.Failure(err)
				assert.Equal(t, status, f.Status)
				assert.Equal(t, map[string]string{
					"Content-Type": "text/plain", "Retry-After": "7",
					"Www-Authenticate": `Bearer realm="https://auth.test/token"`,
				}, f.Header)
				assert.NotContains(t, f.Message, Secret)
				most := 1
				if status == http.StatusInternalServerError {
					most = 2 // it may be the error of one attempt
				}
				assert.LessOrEqual(t, len(s.Requests()), most, "requests to the origin")
			})
	}
}

// silence tests origins that fall silent or are slow.
func (c contract) silence() {
	c.within(soon, "silence before the headers is a timeout", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		_, _, err := read(t, sub, 0)
		require.Error(t, err)
		assert.Equal(t, http.StatusGatewayTimeout, source.Failure(err).Status, "%v", err)
	})
	c.within(soon, "silence in the body is a timeout", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(s.Content)))
			_, _ = w.Write(s.Content[:100_000])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		b, err := mustFail(t, s, sub, 0)
		assert.Len(t, b, 100_000)
		assert.Equal(t, http.StatusGatewayTimeout, source.Failure(err).Status, "%v", err)
	})
	c.within(soon, "silence in an error answer does not change its status", func(t *testing.T, s *Server, sub Subject) {
		s.On(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		_, _, err := read(t, sub, 0)
		assert.Equal(t, http.StatusForbidden, source.Failure(err).Status, "%v", err)
	})
	c.within(beyond, "a slow origin meets no timeout", func(t *testing.T, s *Server, sub Subject) {
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
		mustRead(t, s, sub, 0)
	})
}

// ends tests cancelled, refused and concurrent requests.
func (c contract) ends() {
	c.each("cancelling ends the body, and closing ends the request", func(t *testing.T, s *Server, sub Subject) {
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
	c.each("a closed port is a bad gateway", func(t *testing.T, s *Server, sub Subject) {
		s.Close()
		_, _, err := read(t, sub, 0)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		assert.Equal(t, http.StatusBadGateway, source.Failure(err).Status)
	})
	c.each("concurrent readers do not disturb each other", func(t *testing.T, s *Server, sub Subject) {
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
