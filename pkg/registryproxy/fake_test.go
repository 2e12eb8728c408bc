package registryproxy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// noTime is the modification time of a blob without one.
var noTime time.Time

// heap is how much memory is in use, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// config holds the settings of a mirror and its Resolver.
type config struct {
	Open        func(context.Context, task.Spec) (registryproxy.Blob, error)
	Passthrough func(context.Context, task.Spec, int64) (*source.Response, error)
	Signs       func(task.ID) policy.Signs
	FirstByte   func(string) time.Duration
	Replaced    func(task.ID) bool
	Default     string
	Allow       func(string) error
	Observe     func(registryproxy.Pull)
	Wait        time.Duration

	Upstream     access.Registry
	Shared       func(context.Context, api.Lookup) (api.LookupReply, error)
	Credentialed func(string) bool
	Vouches      func(string) bool
	Policy       access.Policy
}

// mirror is a Proxy with its Resolver.
type mirror struct {
	*registryproxy.Proxy
	*access.Resolver
}

func newMirror(cfg config) *mirror {
	r := access.New(access.Config{
		Registry: cfg.Upstream, AskOwner: cfg.Shared, Credentialed: cfg.Credentialed, Trusted: cfg.Vouches,
		Policy: cfg.Policy,
	})
	return &mirror{registryproxy.New(registryproxy.Config{
		Resolver: r, Open: cfg.Open, Passthrough: cfg.Passthrough, Signs: cfg.Signs, FirstByte: cfg.FirstByte,
		Replaced: cfg.Replaced, Wait: cfg.Wait,
		Default: cfg.Default, Allow: cfg.Allow, Observe: cfg.Observe,
	}), r}
}

// fakeBlob is a blob in memory whose reads may fail, or wait, at an offset.
type fakeBlob struct {
	data      []byte
	mediaType string
	// failAt is where reads fail with err, or wait for their context when err is nil; 0
	// with a nil err never does.
	failAt  int64
	err     error
	stall   bool
	writers chan string // types that WriteTo was given
}

func (c *fakeBlob) Metadata() piece.Metadata {
	return piece.MetadataFor(int64(len(c.data)), c.mediaType)
}

func (c *fakeBlob) NewReader(ctx context.Context, off, n int64) registryproxy.Reader {
	return &fakeReader{c: c, ctx: ctx, pos: off, end: off + n}
}

func (c *fakeBlob) Close() error { return nil }

type fakeReader struct {
	c        *fakeBlob
	ctx      context.Context
	pos, end int64
}

func (r *fakeReader) Close() error { return nil }

func (r *fakeReader) Read(p []byte) (int, error) {
	if r.pos >= r.end {
		return 0, io.EOF
	}
	end := r.end
	if r.c.stall || r.c.err != nil {
		if r.pos >= r.c.failAt {
			if r.c.err != nil {
				return 0, r.c.err
			}
			<-r.ctx.Done()
			return 0, context.Cause(r.ctx)
		}
		end = min(end, r.c.failAt)
	}
	n := copy(p, r.c.data[r.pos:end])
	r.pos += int64(n)
	return n, nil
}

func (r *fakeReader) WriteTo(w io.Writer) (sum int64, err error) {
	if r.c.writers != nil {
		_, ok := w.(io.ReaderFrom)
		r.c.writers <- fmt.Sprintf("%T %v", w, ok)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if err == io.EOF {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
		m, err := w.Write(buf[:n])
		sum += int64(m)
		if err != nil {
			return sum, err
		}
	}
}

// swarm opens fake blobs and records the specs.
type swarm struct {
	mu       sync.Mutex
	contents map[task.ID]*fakeBlob
	opened   []task.Spec
	err      error
}

func (s *swarm) put(data []byte, mediaType string) task.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.contents == nil {
		s.contents = map[task.ID]*fakeBlob{}
	}
	id := oci.DigestOf(data)
	s.contents[id] = &fakeBlob{data: data, mediaType: mediaType}
	return id
}

func (s *swarm) Open(ctx context.Context, spec task.Spec) (registryproxy.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, spec)
	if s.err != nil {
		return nil, spoken(s.err, spec)
	}
	if c := s.contents[spec.ID]; c != nil {
		return c, nil
	}
	return nil,
		spoken(&api.Failure{Status: http.StatusNotFound, Message: "not in the fake swarm: " + string(spec.ID)}, spec)
}

// spoken names the spec's registry as the source of a failure that names none.
func spoken(err error, spec task.Spec) error {
	f, ok := err.(*api.Failure)
	if !ok || f.Upstream != "" {
		return err
	}
	copied := *f
	copied.Upstream, copied.Repository, copied.Asker = spec.Upstream, spec.Repository, spec.Asker(nil)
	return &copied
}

// upstreamFunc answers as a registry does and records the requests. Mirrors also ask it in the background, so
// that tests change it through its methods.
type upstreamFunc struct {
	mu     sync.Mutex
	asked  []source.RegistryRequest
	answer func(w http.ResponseWriter, r source.RegistryRequest)
	err    error
}

// reply sets the answer to further requests; with nil they get none.
func (u *upstreamFunc) reply(answer func(w http.ResponseWriter, r source.RegistryRequest)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

// fail makes further requests fail with err; nil makes them succeed again.
func (u *upstreamFunc) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
}

// requests returns the requests since the start or forget.
func (u *upstreamFunc) requests() []source.RegistryRequest {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.asked)
}

func (u *upstreamFunc) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = nil
}

func (u *upstreamFunc) Do(ctx context.Context, r source.RegistryRequest) (*http.Response, error) {
	u.mu.Lock()
	u.asked = append(u.asked, r)
	answer, err := u.answer, u.err
	u.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if answer == nil {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	rec := httptest.NewRecorder()
	answer(rec, r)
	res := rec.Result()
	res.ContentLength = -1
	if n := res.Header.Get("Content-Length"); n != "" {
		fmt.Sscan(n, &res.ContentLength)
	}
	if r.Method == http.MethodHead {
		res.Body = http.NoBody
	}
	return res, nil
}

// object is one manifest or blob of a fake registry.
type object struct {
	data      []byte
	mediaType string
}

// answers returns a registry of objects, keyed by "upstream/v2/repository/blobs/digest".
func answers(objects map[string]object) func(http.ResponseWriter, source.RegistryRequest) {
	return func(w http.ResponseWriter, r source.RegistryRequest) {
		o, ok := objects[r.Upstream+r.Path]
		if !ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			code := "MANIFEST_UNKNOWN"
			if strings.Contains(r.Path, "/blobs/") {
				code = "BLOB_UNKNOWN"
			}
			io.WriteString(w, `{"errors":[{"code":"`+code+`","message":"the registry's own words"}]}`)
			return
		}
		w.Header().Set("Content-Type", o.mediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(o.data)))
		w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(o.data)))
		w.Write(o.data)
	}
}

// pulls collects the calls of Observe.
type pulls struct {
	mu  sync.Mutex
	all []registryproxy.Pull
	// ended, if not nil, gets a value for each call.
	ended chan struct{}
}

func (p *pulls) observe(pull registryproxy.Pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, pull)
	if p.ended != nil {
		p.ended <- struct{}{}
	}
}

func (p *pulls) last(t *testing.T) registryproxy.Pull {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.NotEmpty(t, p.all)
	return p.all[len(p.all)-1]
}

// ask serves one request without a connection.
func ask(p http.Handler, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(b)
}

// refusedAs checks an error of the distribution API and returns its message and detail.
func refusedAs(t *testing.T, res *http.Response, status int, code string) string {
	t.Helper()
	b := body(t, res)
	require.Equal(t, status, res.StatusCode, b)
	assert.Equal(t, "application/json", res.Header.Get("Content-Type"))
	assert.Equal(t, "registry/2.0", res.Header.Get("Docker-Distribution-API-Version"))
	assert.Equal(t, fmt.Sprint(len(b)), res.Header.Get("Content-Length"))
	assert.True(t, strings.HasPrefix(b, `{"errors":[{"code":"`+code+`","message":"`), b)
	return b
}

// blob returns bytes in which neither compression nor repetition hides errors.
func blob(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d:%s\n", i, oci.DigestOf([]byte{byte(i), byte(i >> 8)}))
	}
	return b.Bytes()[:n]
}
