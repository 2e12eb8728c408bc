package httporigin

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
)

// AnswerError reports that an origin's answer contradicts the request, the protocol or itself, so that its
// bytes may not be the requested ones.
type AnswerError struct {
	// URL has no user info and no query.
	Method, URL string
	Reason      string
}

func (e *AnswerError) Error() string {
	return fmt.Sprintf("%s %s: unusable answer: %s", e.Method, e.URL, e.Reason)
}

// Get is a request for a file.
type Get struct {
	Request
	// Offset is the body's first byte in the file, End the byte behind its last; an End of 0 is the end of the file.
	Offset, End int64
	// Validator is the ETag or Last-Modified that the file must have; empty accepts any version.
	Validator string
	// Length of the whole file in bytes if it is known, else 0 or less. It bounds the bytes that are read:
	// another length, declared or sent, is a *[source.LengthError].
	Length int64
	// Raw is for files that a digest names, or whose own name says gzip. It reports whether the encoding gzip is only a
	// label of the file's own type, if the lengths do not show that. resumed says that the bytes continue an earlier
	// answer. Every other encoding is then such a label, too, unless Allows refuses it. Nil decodes gzip and refuses other
	// encodings.
	Raw func(resumed bool) bool
	// Allows returns an error for an answer whose headers forbid the use of its bytes; Open returns that
	// error. May be nil.
	Allows func(http.Header) error
}

// Open starts one streaming GET, as the contract of [source.Origin] requires.
//
// It requests the identity encoding. If an origin sends gzip nevertheless, Open decodes the body; its length is
// then unknown, and a resumption reads from the start. A body whose encoded length equals the known Length is
// the file itself: some storages label a layer with the encoding of its file type. Every other encoding is
// an [AnswerError].
//
// After a 416, or an encoded partial answer, Open requests the whole file, once.
func (c *Client) Open(ctx context.Context, g Get) (*source.Response, error) {
	if g.Offset < 0 {
		return nil, fmt.Errorf("GET %s: negative offset %d", secret.PrintableURL(g.URL), g.Offset)
	}
	if g.End != 0 && g.End <= g.Offset {
		return nil, fmt.Errorf("GET %s: no byte in the range [%d, %d)", secret.PrintableURL(g.URL), g.Offset, g.End)
	}
	res, err := c.open(ctx, g, g.Offset > 0 || g.End > 0)
	if errors.Is(err, errAskWhole) {
		res, err = c.open(ctx, g, false)
	}
	return res, err
}

// errAskWhole means that the answer to a Range is of no use.
var errAskWhole = errors.New("request the whole file")

// conditions are the headers with which Open alone may make a request conditional or partial.
var conditions = []string{
	"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since",
}

func (c *Client) open(ctx context.Context, g Get, ranged bool) (*source.Response, error) {
	header := g.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	for _, k := range conditions {
		header.Del(k)
	}
	if ranged {
		asked := fmt.Sprintf("bytes=%d-", g.Offset)
		if g.End > 0 {
			asked += strconv.FormatInt(g.End-1, 10)
		}
		header.Set("Range", asked)
		// If-Range requires a strong ETag (RFC 9110 §13.1.5).
		if strings.HasPrefix(g.Validator, `"`) {
			header.Set("If-Range", g.Validator)
		}
	}
	ctx, abort := context.WithCancelCause(ctx)
	ask := g.Request
	ask.Method, ask.Header = http.MethodGet, header
	res, err := c.Do(ctx, ask)
	if err != nil {
		abort(nil)
		return nil, err
	}
	out, err := c.judge(ctx, abort, g, ranged, res)
	if err != nil {
		res.Body.Close()
		abort(nil)
		return nil, err
	}
	return out, nil
}

// judge turns an answer into a body that begins at the offset, or into an error.
func (c *Client) judge(
	ctx context.Context, abort context.CancelCauseFunc, g Get, ranged bool, res *http.Response,
) (*source.Response, error) {
	switch {
	case ranged && refusesRange(res.StatusCode, g.End > 0):
		// The file may be shorter now, or have exactly this length, or the origin may be wrong. A request for
		// the whole file decides.
		return nil, errAskWhole
	case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNonAuthoritativeInfo &&
		res.StatusCode != http.StatusPartialContent:
		return nil, c.statusError(ctx, abort, res, http.MethodGet, g.URL)
	}
	if g.Allows != nil {
		if err := g.Allows(res.Header); err != nil {
			return nil, err
		}
	}
	validator, err := g.checkValidator(res, ranged)
	if err != nil {
		return nil, err
	}
	out := &source.Response{MediaType: res.Header.Get("Content-Type"), Validator: validator,
		Modified: Modified(res.Header)}
	if len(out.MediaType) > mediaTypeMax {
		return nil, g.unusable("Content-Type of %d bytes", len(out.MediaType))
	}
	body := c.newBody(ctx, abort, res.Body, http.MethodGet, g.URL)
	if out.Length, err = g.frame(body, ranged, res); err != nil {
		return nil, err
	}
	switch {
	case g.Length > 0 && out.Length < 0:
		out.Length = g.Length
	case g.Length > 0 && out.Length != g.Length:
		return nil, &source.LengthError{Method: http.MethodGet, URL: secret.PrintableURL(g.URL), Want: g.Length,
			Got: out.Length}
	}
	if out.Length >= 0 && out.Length < g.Offset {
		return nil, g.unusable("the file has %d bytes, but byte %d was requested", out.Length, g.Offset)
	}
	body.want, body.offset = -1, g.Offset
	if out.Length >= 0 {
		body.want = out.Length - g.Offset
	}
	body.lengthErr = source.LengthError{Method: http.MethodGet, URL: secret.PrintableURL(g.URL), Want: out.Length}
	out.Body, out.Skips = body, body.skip > 0
	if g.End > 0 {
		if res.StatusCode == http.StatusPartialContent {
			body.want = body.declared // it may end sooner (RFC 9110 §15.3.7) or later, as some caches' answers do
		}
		out.Body = source.Cut(body, g.End-g.Offset)
	}
	return out, nil
}

// refusesRange reports whether an origin that answers a Range with this status may send the whole file: some answer so
// to any Range. Of a window, such an error is left to the caller, whose stream brings the bytes.
func refusesRange(status int, window bool) bool {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		return true
	case http.StatusBadRequest, http.StatusNotImplemented:
		return !window
	}
	return false
}

// unusable returns an [AnswerError].
func (g Get) unusable(format string, args ...any) error {
	return &AnswerError{Method: http.MethodGet, URL: secret.PrintableURL(g.URL), Reason: fmt.Sprintf(format, args...)}
}

// checkValidator returns the validator of the version that an answer holds, or a [source.ChangedError] if it
// is another version than the requested one.
func (g Get) checkValidator(res *http.Response, ranged bool) (string, error) {
	validator := validatorOf(res.Header)
	if g.Validator == "" || validator == g.Validator {
		return validator, nil
	}
	// A 206 to an If-Range confirms the validator even if it repeats none.
	partial := res.StatusCode == http.StatusPartialContent
	if partial && ranged && validator == "" && strings.HasPrefix(g.Validator, `"`) {
		return g.Validator, nil
	}
	return "", &source.ChangedError{URL: secret.PrintableURL(g.URL), Was: g.Validator, Is: validator}
}

// frame sets how a body is decoded and where it begins and ends, and returns the length of the whole file in
// bytes, −1 if the answer does not declare it. errAskWhole means that the partial answer is of no use.
func (g Get) frame(body *body, ranged bool, res *http.Response) (length int64, err error) {
	encoding, err := encodingOf(res.Header)
	if err != nil && g.Raw == nil {
		return 0, g.unusable("%v", err)
	}
	partial := res.StatusCode == http.StatusPartialContent
	if partial && !ranged {
		return 0, g.unusable("206 to a request without Range")
	}
	shown := g.Length > 0 && res.ContentLength >= 0 && !partial // the lengths show it
	if encoding == "gzip" && (shown && res.ContentLength == g.Length || !shown && g.Raw != nil && g.Raw(g.Offset > 0)) {
		encoding = ""
	}
	switch {
	case encoding == "gzip" && partial:
		return 0, errAskWhole
	case encoding == "gzip":
		body.decode = true
		body.declared = res.ContentLength
		body.skip = g.Offset
		body.delimited = true
		return -1, nil
	case partial:
		r, err := parseContentRange(res.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return 0, g.unusable("%v", err)
		case r.start != g.Offset:
			return 0, g.unusable("its range begins at byte %d, but byte %d was requested", r.start, g.Offset)
		case res.ContentLength >= 0 && res.ContentLength != r.end-r.start+1:
			return 0, g.unusable("%d bytes for the range %d-%d", res.ContentLength, r.start, r.end)
		}
		body.declared = r.end - r.start + 1
		return r.total, nil
	default:
		body.declared = res.ContentLength
		body.skip = g.Offset
		// The last chunk marks the end (RFC 9112 §7.1); a body that ends with its connection may be cut.
		body.delimited = slices.Contains(res.TransferEncoding, "chunked")
		return res.ContentLength, nil
	}
}

// mediaTypeMax bounds a Content-Type, in bytes, as pkg/piece does.
const mediaTypeMax = 255

// validatorOf returns the ETag, else the Last-Modified.
func validatorOf(h http.Header) string {
	if v := h.Get("ETag"); v != "" {
		return v
	}
	return h.Get("Last-Modified")
}

// Modified returns the Last-Modified of an answer, zero if there is none that can be read.
func Modified(h http.Header) time.Time {
	at, _ := http.ParseTime(h.Get("Last-Modified")) // zero with an error
	return at
}

// encodingOf returns "" for identity, or "gzip".
func encodingOf(h http.Header) (string, error) {
	switch v := strings.ToLower(strings.TrimSpace(strings.Join(h.Values("Content-Encoding"), ","))); v {
	case "", "identity":
		return "", nil
	case "gzip", "x-gzip":
		return "gzip", nil
	default:
		return "", fmt.Errorf("it is encoded as %.40q, but identity was requested", v)
	}
}

// contentRange is a parsed Content-Range; total is −1 if unknown ("*").
type contentRange struct{ start, end, total int64 }

// parseContentRange reads "bytes START-END/TOTAL" (RFC 9110 §14.4).
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("unreadable Content-Range %.80q", s)
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return bad()
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return bad()
	}
	r := contentRange{total: -1}
	var err error
	if r.start, err = digits(first); err != nil {
		return bad()
	}
	if r.end, err = digits(last); err != nil || r.end < r.start {
		return bad()
	}
	if total != "*" {
		if r.total, err = digits(total); err != nil || r.end >= r.total {
			return bad()
		}
	}
	return r, nil
}

// digits reads a number without a sign.
func digits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// body is an origin's body from the requested offset on. One goroutine reads it.
type body struct {
	c     *Client
	ctx   context.Context
	abort context.CancelCauseFunc
	rc    io.ReadCloser
	what  string

	decode bool
	zr     io.Reader
	skip   int64 // bytes to drop first

	declared  int64 // raw bytes that the answer declares, −1 unknown
	raw       int64 // raw bytes read
	want      int64 // bytes that the reader must get, −1 unknown
	got       int64 // bytes that the reader got
	offset    int64 // in the file, of the first byte that the reader gets
	delimited bool  // the encoding marks the end, so that an early end is no cut
	lengthErr source.LengthError
	err       error

	watchdog *time.Timer
	silent   atomic.Bool
	// waited is the time spent in reads since the rate was last compared with rateMin, came the bytes that arrived in it.
	waited time.Duration
	came   int64
}

// rateMin is the lowest rate of a body, in bytes per second. A slower one would hold clients for hours: a new
// request, or another source, may do better.
const rateMin = 1 << 10

// crawls adds a read to the rate, and reports whether the body comes slower than rateMin.
func (b *body) crawls(n int, took time.Duration) bool {
	b.waited += took
	b.came += int64(n)
	if b.waited < b.c.cfg.IdleTimeout {
		return false
	}
	slow := float64(b.came) < rateMin*b.waited.Seconds()
	if !slow {
		b.waited, b.came = 0, 0
	}
	return slow
}

func (c *Client) newBody(ctx context.Context, abort context.CancelCauseFunc, rc io.ReadCloser, method string,
	u *url.URL) *body {
	b := &body{c: c, ctx: ctx, abort: abort, rc: rc, what: method + " " + secret.PrintableURL(u),
		declared: -1, want: -1}
	b.watchdog = time.AfterFunc(time.Hour, func() {
		b.silent.Store(true)
		abort(os.ErrDeadlineExceeded)
	})
	b.watchdog.Stop()
	return b
}

// rawReader reads the connection; the watchdog runs while it waits. A crawling body ends as a silent one does.
type rawReader struct{ *body }

func (r rawReader) Read(p []byte) (int, error) {
	r.watchdog.Reset(r.c.cfg.IdleTimeout)
	begun := time.Now()
	n, err := r.rc.Read(p)
	r.watchdog.Stop()
	r.raw += int64(n)
	crawls := r.crawls(n, time.Since(begun))
	switch {
	case r.declared >= 0 && r.raw > r.declared:
		return max(0, n-int(r.raw-r.declared)), fmt.Errorf("more than the declared %d bytes", r.declared)
	case err == nil && crawls && r.raw != r.declared:
		err = fmt.Errorf("received %d bytes in %s: %w", r.came, r.waited.Round(time.Second), os.ErrDeadlineExceeded)
	case err == nil:
	case r.silent.Load():
		err = fmt.Errorf("received no byte for %s: %w", r.c.cfg.IdleTimeout, os.ErrDeadlineExceeded)
	case r.ctx.Err() != nil:
		err = context.Cause(r.ctx)
	case errors.Is(err, io.EOF) && r.declared >= 0 && r.raw < r.declared:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil {
		var length *source.LengthError
		if !errors.Is(err, io.EOF) && !errors.As(err, &length) {
			err = fmt.Errorf("%s: body after %d bytes: %w", b.what, b.got, err)
		}
		b.err = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	var in io.Reader = rawReader{b}
	if b.decode {
		if b.zr == nil {
			zr, err := decoder(in)
			if err != nil {
				return 0, unexpectedEOF(err)
			}
			b.zr = zr
		}
		in = b.zr
	}
	for b.skip > 0 {
		n, err := in.Read(p[:min(int64(len(p)), b.skip)])
		b.skip -= int64(n)
		if err != nil && b.skip > 0 {
			return 0, unexpectedEOF(err)
		}
	}
	n, err := in.Read(p)
	b.got += int64(n)
	switch {
	case b.want >= 0 && b.got > b.want:
		n -= int(b.got - b.want)
		b.got = b.want
		return max(0, n), b.wrongLength(b.want+1, true)
	case errors.Is(err, io.EOF) && b.got < b.want && b.delimited:
		return n, b.wrongLength(b.got, false)
	case errors.Is(err, io.EOF) && b.got < b.want:
		return n, fmt.Errorf("it ends at byte %d of %d: %w", b.offset+b.got, b.offset+b.want, io.ErrUnexpectedEOF)
	}
	return n, err
}

// decoder decodes gzip. Bytes that are not gzip have a wrong label, and are the file itself.
func decoder(in io.Reader) (io.Reader, error) {
	buffered := bufio.NewReaderSize(in, 64<<10)
	if magic, err := buffered.Peek(2); err == nil && (magic[0] != 0x1f || magic[1] != 0x8b) {
		return buffered, nil
	}
	return gzip.NewReader(buffered)
}

// wrongLength returns the error of a body that gives got bytes, or more, instead of the known length.
func (b *body) wrongLength(got int64, more bool) error {
	out := b.lengthErr
	out.Got, out.More = b.offset+got, more
	return &out
}

// unexpectedEOF replaces an io.EOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close ends the request without waiting for the rest of the body.
func (b *body) Close() error {
	b.watchdog.Stop()
	b.abort(nil)
	if b.err == nil {
		b.err = fmt.Errorf("%s: body: %w", b.what, os.ErrClosed)
	}
	return b.rc.Close()
}
