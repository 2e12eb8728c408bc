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

// Action is what a [Fault] does to a request.
type Action string

// The actions.
const (
	// ActStatus answers Status with the Header given and an error body.
	ActStatus Action = "status"
	// ActSlowHeaders waits Delay before anything is answered.
	ActSlowHeaders Action = "slow-headers"
	// ActCorrupt flips the bits of the byte at offset At of the whole object.
	ActCorrupt Action = "corrupt"
	// ActTruncate ends the connection by FIN after At bytes of the body.
	ActTruncate Action = "truncate"
	// ActReset ends the connection by RST after At bytes of the body.
	ActReset Action = "reset"
	// ActStall sends nothing more after At bytes of the body, until the client goes away or
	// [Registry.ClearFaults] is called.
	ActStall Action = "stall"
	// ActIgnoreRange answers a Range with 200 and the whole.
	ActIgnoreRange Action = "ignore-range"
	// ActWrongRange sends a Content-Range that begins one byte too late.
	ActWrongRange Action = "wrong-range"
	// ActNoLength sends no Content-Length.
	ActNoLength Action = "no-length"
	// ActWrongLength answers as if the object had At bytes: what is beyond is not sent, and
	// what is missing is zeros. Of a Range it takes no notice.
	ActWrongLength Action = "wrong-length"
	// ActRedirect sends readers of blobs to another host, with a signed URL that takes no
	// Authorization; the right is checked first.
	ActRedirect Action = "redirect"
)

// Fault is one line of a script. All faults that match a request act on it.
type Fault struct {
	Action Action `json:"action"`
	// Match is a part of "METHOD repository/blobs/digest" (or manifests, with a tag or
	// digest); empty matches every GET of a blob or manifest.
	Match string `json:"match,omitempty"`
	// Skip lets so many matching requests pass first.
	Skip int `json:"skip,omitempty"`
	// Times is how many requests are hit; 0 hits all until the faults are cleared.
	Times int `json:"times,omitempty"`
	// At is an offset in bytes.
	At int64 `json:"at,omitempty"`
	// Status and Header of ActStatus.
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	// DelayMillis of ActSlowHeaders.
	DelayMillis int `json:"delayMillis,omitempty"`
	// Storage hits requests at the storage host and not at the registry's own.
	Storage bool `json:"storage,omitempty"`

	hit int
}

// Fail adds faults to the script.
func (r *Registry) Fail(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range faults {
		r.faults = append(r.faults, &f)
	}
}

// ClearFaults empties the script and lets stalled bodies go on.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
	close(r.release)
	r.release = make(chan struct{})
}

// Shape bounds what leaves the registry, in bytes per second: over all connections, and on
// each one. 0 is no bound.
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

// shapeBurst is the most that leaves at once, in bytes; shapeChunk is written at a time.
const (
	shapeBurst = 64 << 10
	shapeChunk = 16 << 10
)

// Counts is what the registry was asked and sent since its start or the last Reset.
type Counts struct {
	// Objects by "repository/blobs/digest", "repository/manifests/tag", "repository/tags/list".
	Objects map[string]Tally `json:"objects"`
	// Requests of every kind, tokens and pings included.
	Requests int `json:"requests"`
	// Pings are requests for /v2/, Tokens those for /token.
	Pings  int `json:"pings"`
	Tokens int `json:"tokens"`
	// Egress is the sum of body bytes sent, Wire that of all bytes (headers, TLS).
	Egress int64 `json:"egress"`
	Wire   int64 `json:"wire"`
	// Leaks counts requests at the storage host that carried an Authorization, a cookie or
	// the header X-Secret.
	Leaks int `json:"leaks"`
}

// Tally is what happened to one object.
type Tally struct {
	GETs  int `json:"gets"`
	HEADs int `json:"heads"`
	// Bytes of bodies sent.
	Bytes int64 `json:"bytes"`
	// Ranges are the Range headers that were sent, in order.
	Ranges []string `json:"ranges,omitempty"`
	// Statuses counts the answers.
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

// Object sums what happened to everything that a digest or tag names, in every repository.
func (c Counts) Object(reference string) (sum Tally) {
	for key, t := range c.Objects {
		if strings.HasSuffix(key, "/"+reference) {
			sum = sum.add(t)
		}
	}
	return sum
}

// Counts is a copy of what was counted so far.
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

// Reset starts counting anew.
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

// ServeHTTP is the registry as the network sees it.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
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
	r.serve(w, req, o, key, false, r.serveApp)
}

// serveStorage is the other host that ActRedirect sends readers to.
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
		in := req.Clone(req.Context())
		in.URL.Path, in.URL.RawQuery = "/v2/"+o.key(), ""
		r.authorizeInside(in, o.repository)
		r.serveApp(w, in)
	})
}

func (o object) key() string { return o.repository + "/" + o.kind + "/" + o.reference }

// serve counts a request under key, and a storage host's bytes under the object's own.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request, o object, key string, storage bool, app http.HandlerFunc) {
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
	out := &writer{ResponseWriter: w, r: r, req: req, key: key, bytesKey: o.key(), cutAt: -1, stallAt: -1, corruptAt: -1, length: -1}
	if o.kind == "" {
		out.bytesKey = ""
	}
	defer out.end()
	var refusal *Fault
	redirect := false
	faults, release := r.pick(req.Method, o, storage)
	for _, f := range faults {
		switch f.Action {
		case ActStatus:
			refusal = &f
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
	case refusal != nil:
		for k, v := range refusal.Header {
			out.Header().Set(k, v)
		}
		writeError(out, refusal.Status, strings.ToUpper(strings.ReplaceAll(http.StatusText(refusal.Status), " ", "")), "a fault of the test")
	case redirect && r.readable(req):
		u := url.URL{Scheme: r.scheme, Host: r.StorageHost(), Path: "/storage/" + o.key(), RawQuery: "signature=" + r.signature}
		http.Redirect(out, req, u.String(), http.StatusTemporaryRedirect)
	default:
		app(out, req)
	}
}

// readable asks the registry itself whether a request would be answered.
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

// pick takes the faults that hit a request, and what ends the stalls among them: taken
// together, so that clearing the faults lets go of everybody whom they hit.
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

// writer counts, shapes and spoils one answer.
type writer struct {
	http.ResponseWriter
	r             *Registry
	req           *http.Request
	key, bytesKey string

	corruptAt, cutAt, stallAt   int64
	length                      int64 // that the object is said to have; -1 is its own
	reset, wrongRange, noLength bool
	release                     <-chan struct{} // ends a stall

	status   int
	start    int64 // offset in the object of the body's first byte
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
				return n + len(p), nil // the registry itself need not know
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
		wrote, err := w.ResponseWriter.Write(w.spoil(chunk))
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

// spoil flips the byte at corruptAt, in a copy.
func (w *writer) spoil(chunk []byte) []byte {
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

// end cuts the connection where a fault says so. It waits until the registry itself has
// returned, so that nothing of it is unwound half-way.
func (w *writer) end() {
	if w.length > w.sent && !w.bodyless {
		_, _ = w.Write(make([]byte, w.length-w.sent))
	}
	if w.cutAt == w.sent && w.cutAt >= 0 && !w.bodyless {
		w.cut = true // a body that was exactly as long, or empty
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

// wait takes n bytes from both bounds.
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

// shapedConn is what the front keeps of a connection.
type shapedConn struct {
	limit *rate.Limiter
	conn  net.Conn
}

// reset closes by RST.
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

// countingListener counts what leaves by its connections.
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
