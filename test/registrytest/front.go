package registrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// Action is the effect of a [Fault] on a request.
type Action string

// The actions.
const (
	// ActStatus answers with Status, Header and an error body.
	ActStatus Action = "status"
	// ActSlowHeaders waits DelayMillis before the answer.
	ActSlowHeaders Action = "slow-headers"
	// ActCorrupt inverts the byte at offset At of the whole object.
	ActCorrupt Action = "corrupt"
	// ActTruncate closes the connection (FIN) after At bytes of the body.
	ActTruncate Action = "truncate"
	// ActReset resets the connection (RST) after At bytes of the body.
	ActReset Action = "reset"
	// ActStall stops sending after At bytes of the body, until the client disconnects or [Registry.ClearFaults] is
	// called.
	ActStall Action = "stall"
	// ActIgnoreRange answers a Range with 200 and the whole object.
	ActIgnoreRange Action = "ignore-range"
	// ActWrongRange sends a Content-Range that begins one byte too late.
	ActWrongRange Action = "wrong-range"
	// ActNoLength sends no Content-Length.
	ActNoLength Action = "no-length"
	// ActWrongLength answers as if the object had At bytes: it cuts the object, or appends zeros. It ignores a Range.
	ActWrongLength Action = "wrong-length"
	// ActRedirect checks the credentials, then redirects requests for blobs to a signed URL at another host, which
	// needs no Authorization.
	ActRedirect Action = "redirect"
)

// Fault is one fault of a script. All faults that match a request act on it.
type Fault struct {
	Action Action `json:"action"`
	// Match is a part of "METHOD repository/blobs/digest" (or manifests, with a tag or digest); empty matches every GET
	// of a blob or manifest.
	Match string `json:"match,omitempty"`
	// Skip is the number of matching requests without the fault before the first one with it.
	Skip int `json:"skip,omitempty"`
	// Times is the number of requests with the fault; 0 means all until the faults are cleared.
	Times int `json:"times,omitempty"`
	// At is an offset in bytes.
	At int64 `json:"at,omitempty"`
	// Status and Header are for ActStatus.
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	// DelayMillis is for ActSlowHeaders.
	DelayMillis int `json:"delayMillis,omitempty"`
	// Storage applies the fault at the storage host instead of the registry.
	Storage bool `json:"storage,omitempty"`

	hit int // matching requests so far
}

// Fail adds faults to the script.
func (r *Registry) Fail(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range faults {
		r.faults = append(r.faults, &f)
	}
}

// ClearFaults empties the script and continues stalled bodies.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
	close(r.release)
	r.release = make(chan struct{})
}

// Shape limits the bytes per second that leave the registry: in total, and per connection. 0 means no limit.
func (r *Registry) Shape(all, perConnection int64) {
	limit := func(n int64) rate.Limit {
		if n <= 0 {
			return rate.Inf
		}
		return rate.Limit(n)
	}
	r.all.SetLimit(limit(all))
	r.mu.Lock()
	r.perConn = limit(perConnection)
	r.mu.Unlock()
}

// shapeBurst bounds a burst and shapeChunk one write, in bytes.
const (
	shapeBurst = 64 << 10
	shapeChunk = 16 << 10
)

// Counts are the requests and the sent bytes since the start or the last Reset.
type Counts struct {
	// Objects by "repository/blobs/digest", "repository/manifests/tag", "repository/tags/list".
	Objects map[string]Tally `json:"objects"`
	// Requests of every kind, tokens and pings included.
	Requests int `json:"requests"`
	// Pings are the requests for /v2/, Tokens those for /token.
	Pings  int `json:"pings"`
	Tokens int `json:"tokens"`
	// Egress is the number of sent body bytes, Wire that of all sent bytes (headers, TLS).
	Egress int64 `json:"egress"`
	Wire   int64 `json:"wire"`
	// Leaks counts the requests at the storage host with an Authorization, a Cookie or an X-Secret header.
	Leaks int `json:"leaks"`
}

// Tally counts the requests for one object.
type Tally struct {
	GETs  int `json:"gets"`
	HEADs int `json:"heads"`
	// Bytes is the number of sent body bytes.
	Bytes int64 `json:"bytes"`
	// Ranges are the requests' Range headers, in order.
	Ranges []string `json:"ranges,omitempty"`
	// Statuses counts the answers by status.
	Statuses map[int]int `json:"statuses"`
}

func newCounts() Counts { return Counts{Objects: map[string]Tally{}} }

func (t Tally) add(o Tally) Tally {
	t.GETs += o.GETs
	t.HEADs += o.HEADs
	t.Bytes += o.Bytes
	t.Ranges = append(slices.Clip(t.Ranges), o.Ranges...)
	sum := maps.Clone(t.Statuses)
	if sum == nil {
		sum = map[int]int{}
	}
	for status, n := range o.Statuses {
		sum[status] += n
	}
	t.Statuses = sum
	return t
}

// Object returns the sum for a digest or tag over all repositories.
func (c Counts) Object(reference string) (sum Tally) {
	for key, t := range c.Objects {
		if strings.HasSuffix(key, "/"+reference) {
			sum = sum.add(t)
		}
	}
	return sum
}

// Counts returns a copy of the counts.
func (r *Registry) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.counts
	out.Objects = make(map[string]Tally, len(r.counts.Objects))
	for key, t := range r.counts.Objects {
		out.Objects[key] = Tally{}.add(t)
	}
	out.Wire = r.wire.Load()
	return out
}

// Reset sets the counts to zero.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts = newCounts()
	r.wire.Store(0)
}

func (r *Registry) count(key string, change func(*Tally)) {
	if key == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.counts.Objects[key]
	change(&t)
	r.counts.Objects[key] = t
}

// ServeHTTP serves the registry with its front.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.cfg.HTTP2 && req.ProtoMajor < 2 {
		w.WriteHeader(http.StatusHTTPVersionNotSupported)
		return
	}
	o, isObject := parsePath(req.URL.Path)
	key := ""
	if isObject {
		key = o.key()
	}
	r.mu.Lock()
	r.counts.Requests++
	switch req.URL.Path {
	case "/v2/", "/v2":
		r.counts.Pings++
	case "/token":
		r.counts.Tokens++
	}
	r.mu.Unlock()
	app := r.serveApp
	if r.cfg.Peculiarity != nil {
		app = func(w http.ResponseWriter, req *http.Request) { r.cfg.Peculiarity(r, w, req, r.serveApp) }
	}
	r.serve(w, req, o, key, false, app)
}

// serveStorage serves the host to which ActRedirect redirects.
func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	o, ok := parsePath(strings.Replace(req.URL.Path, "/storage/", "/v2/", 1))
	if !ok || req.URL.Query().Get("signature") != r.signature {
		writeError(w, http.StatusForbidden, "DENIED", "no such signed URL")
		return
	}
	r.mu.Lock()
	r.counts.Requests++
	for _, name := range []string{"Authorization", "Cookie", "X-Secret"} {
		if req.Header.Get(name) != "" {
			r.counts.Leaks++
			break
		}
	}
	r.mu.Unlock()
	r.serve(w, req, o, "", true, func(w http.ResponseWriter, req *http.Request) {
		r.serveApp(w, r.inside(req, "/v2/"+o.key()))
	})
}

func (o object) key() string { return o.repository + "/" + o.kind + "/" + o.reference }

// serve applies the faults to a request and passes it to app. It counts the request under key, and its bytes under
// the object's key, also at the storage host.
func (r *Registry) serve(
	w http.ResponseWriter, req *http.Request, o object, key string, storage bool, app http.HandlerFunc,
) {
	r.count(key, func(t *Tally) {
		switch req.Method {
		case http.MethodGet:
			t.GETs++
		case http.MethodHead:
			t.HEADs++
		}
		if h := req.Header.Get("Range"); h != "" {
			t.Ranges = append(t.Ranges, h)
		}
	})
	out := &writer{
		ResponseWriter: w, r: r, req: req, key: key, bytesKey: o.key(),
		cutAt: -1, stallAt: -1, corruptAt: -1, length: -1,
	}
	if o.kind == "" {
		out.bytesKey = ""
	}
	defer out.end()
	var status *Fault
	redirect := false
	faults, release := r.pick(req.Method, o, storage)
	for _, f := range faults {
		switch f.Action {
		case ActStatus:
			status = &f
		case ActSlowHeaders:
			select {
			case <-time.After(time.Duration(f.DelayMillis) * time.Millisecond):
			case <-req.Context().Done():
				return
			}
		case ActCorrupt:
			out.corruptAt = f.At
		case ActTruncate, ActReset:
			out.cutAt, out.reset = f.At, f.Action == ActReset
		case ActStall:
			out.stallAt, out.release = f.At, release
		case ActIgnoreRange:
			req.Header.Del("Range")
			req.Header.Del("If-Range")
		case ActWrongRange:
			out.wrongRange = true
		case ActNoLength:
			out.noLength = true
		case ActWrongLength:
			req.Header.Del("Range")
			req.Header.Del("If-Range")
			out.length = f.At
		case ActRedirect:
			redirect = o.kind == "blobs"
		}
	}
	switch {
	case status != nil:
		for k, v := range status.Header {
			out.Header().Set(k, v)
		}
		code := strings.ToUpper(strings.ReplaceAll(http.StatusText(status.Status), " ", ""))
		writeError(out, status.Status, code, "a fault of the test")
	case redirect && r.readable(req):
		http.Redirect(out, req, r.storageURL(o), http.StatusTemporaryRedirect)
	default:
		app(out, req)
	}
}

// storageURL is an object's signed URL at the storage host.
func (r *Registry) storageURL(o object) string {
	scheme := r.scheme
	if r.cfg.PlainStorage {
		scheme = "http"
	}
	u := url.URL{Scheme: scheme, Host: r.StorageHost(), Path: "/storage/" + o.key()}
	u.RawQuery = "signature=" + r.signature
	return u.String()
}

// readable reports whether the registry would answer a request with 200.
func (r *Registry) readable(req *http.Request) bool {
	head := req.Clone(req.Context())
	head.Method = http.MethodHead
	head.Header.Del("Range")
	res, err := inside{r}.RoundTrip(head)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// pick returns the faults for a request, and the channel that ends their stalls, under one lock, so that ClearFaults
// always ends the stalls of all picked faults.
func (r *Registry) pick(method string, o object, storage bool) (out []Fault, release <-chan struct{}) {
	if o.kind == "" {
		return nil, nil
	}
	line := method + " " + o.key()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		matches := strings.Contains(line, f.Match)
		if f.Match == "" {
			matches = method == http.MethodGet && (o.kind == "blobs" || o.kind == "manifests")
		}
		if !matches || f.Storage != storage {
			continue
		}
		if f.hit++; f.hit <= f.Skip || (f.Times > 0 && f.hit > f.Skip+f.Times) {
			continue
		}
		out = append(out, *f)
	}
	return out, r.release
}

// errCut ends a body early.
var errCut = errors.New("cut by a fault of the test")

// writer counts one answer, limits its rate and applies its faults.
type writer struct {
	http.ResponseWriter
	r             *Registry
	req           *http.Request
	key, bytesKey string

	corruptAt, cutAt, stallAt   int64
	length                      int64 // the pretended length of the object; -1 for its own
	reset, wrongRange, noLength bool
	release                     <-chan struct{} // ends a stall

	status   int
	start    int64 // offset of the body's first byte in the object
	sent     int64
	cut      bool
	bodyless bool
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if status != http.StatusOK && status != http.StatusPartialContent {
		w.corruptAt, w.cutAt, w.stallAt, w.length = -1, -1, -1, -1
	}
	if w.length >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(w.length, 10))
	}
	w.bodyless = w.req.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified
	w.r.count(w.key, func(t *Tally) {
		if t.Statuses == nil {
			t.Statuses = map[int]int{}
		}
		t.Statuses[status]++
	})
	if cr := w.Header().Get("Content-Range"); cr != "" {
		var end, total int64
		if _, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &w.start, &end, &total); err == nil && w.wrongRange {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", w.start+1, end, total))
		}
	}
	if w.noLength {
		w.Header().Del("Content-Length")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (n int, err error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.bodyless {
		return len(p), nil
	}
	for len(p) > 0 {
		chunk := p[:min(len(p), shapeChunk)]
		if left := w.length - w.sent; w.length >= 0 && left < int64(len(chunk)) {
			if left == 0 {
				return n + len(p), nil // hide the cut from the registry
			}
			chunk = chunk[:left]
		}
		for _, at := range []int64{w.cutAt, w.stallAt} {
			if left := at - w.sent; at >= 0 && left < int64(len(chunk)) {
				chunk = chunk[:max(0, left)]
			}
		}
		if w.cutAt >= 0 && w.sent >= w.cutAt {
			w.cut = true
			return n, errCut
		}
		if w.stallAt >= 0 && w.sent >= w.stallAt {
			if err := w.stall(); err != nil {
				return n, err
			}
			continue
		}
		if err := w.r.wait(w.req.Context(), len(chunk)); err != nil {
			return n, err
		}
		wrote, err := w.ResponseWriter.Write(w.corrupt(chunk))
		n += wrote
		w.sent += int64(wrote)
		w.r.count(w.bytesKey, func(t *Tally) { t.Bytes += int64(wrote) })
		w.r.mu.Lock()
		w.r.counts.Egress += int64(wrote)
		w.r.mu.Unlock()
		if err != nil {
			return n, err
		}
		p = p[len(chunk):]
	}
	return n, nil
}

// corrupt inverts the byte at corruptAt, in a copy.
func (w *writer) corrupt(chunk []byte) []byte {
	i := w.corruptAt - w.start - w.sent
	if w.corruptAt < 0 || i < 0 || i >= int64(len(chunk)) {
		return chunk
	}
	chunk = slices.Clone(chunk)
	chunk[i] ^= 0xff
	return chunk
}

func (w *writer) stall() error {
	w.stallAt = -1
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	select {
	case <-w.release:
		return nil
	case <-w.req.Context().Done():
		return w.req.Context().Err()
	}
}

// end cuts the connection if a fault requires it. It runs after the registry's handler has returned, so that the panic
// does not unwind the handler.
func (w *writer) end() {
	if w.length > w.sent && !w.bodyless {
		_, _ = w.Write(make([]byte, w.length-w.sent))
	}
	if w.cutAt == w.sent && w.cutAt >= 0 && !w.bodyless {
		w.cut = true // the body ends exactly at cutAt
	}
	if !w.cut {
		return
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	if conn, ok := w.req.Context().Value(connKey{}).(*shapedConn); ok && w.reset {
		conn.reset()
	}
	panic(http.ErrAbortHandler)
}

// wait takes n bytes from both rate limits.
func (r *Registry) wait(ctx context.Context, n int) error {
	if err := r.all.WaitN(ctx, n); err != nil {
		return err
	}
	conn, ok := ctx.Value(connKey{}).(*shapedConn)
	if !ok {
		return nil
	}
	r.mu.Lock()
	limit := r.perConn
	r.mu.Unlock()
	if conn.limit.Limit() != limit {
		conn.limit.SetLimit(limit)
	}
	return conn.limit.WaitN(ctx, n)
}

type connKey struct{}

// shapedConn is the front's state of a connection.
type shapedConn struct {
	limit *rate.Limiter
	conn  net.Conn
}

// reset closes the connection with RST.
func (c *shapedConn) reset() {
	conn := c.conn
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	if counted, ok := conn.(*countingConn); ok {
		conn = counted.Conn
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	}
}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, &shapedConn{limit: rate.NewLimiter(rate.Inf, shapeBurst), conn: c})
}

// countingListener counts the bytes that its connections send.
type countingListener struct {
	net.Listener
	registry *Registry
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{Conn: c, registry: l.registry}, nil
}

type countingConn struct {
	net.Conn
	registry *Registry
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.registry.wire.Add(int64(n))
	return n, err
}
