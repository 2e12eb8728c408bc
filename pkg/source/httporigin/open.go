package httporigin

import (
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

	"github.com/darter-io/darter/pkg/source"
)

// AnswerError tells that an origin's answer contradicts the request, the protocol or itself,
// so that its bytes cannot be trusted to be the asked ones.
type AnswerError struct {
	// URL without user info and query.
	Method, URL string
	Reason      string
}

func (e *AnswerError) Error() string {
	return fmt.Sprintf("%s %s: unusable answer: %s", e.Method, e.URL, e.Reason)
}

// Get is a request for content.
type Get struct {
	Request
	// Offset is where the body is to begin, in bytes.
	Offset int64
	// Validator is the ETag or Last-Modified that the content must have; empty takes any.
	Validator string
	// Length of the whole content in bytes where it is known, else 0 or less. It bounds what is
	// read: another length, told or sent, is a *[source.LengthError].
	Length int64
	// Allows, unless nil, returns an error for an answer whose headers forbid what its bytes are
	// wanted for; Open returns that error.
	Allows func(http.Header) error
}

// Open starts one streaming GET as [source.Origin] wants it.
//
// Only the identity encoding is asked for. Where an origin sends gzip all the same the body
// is decoded, its length is then unknown and a resumption reads from the start; but bytes
// whose encoded length is the Length known beforehand are the content themselves, as of a
// layer that its storage labels with its file type. Every other encoding is an
// [AnswerError].
//
// A Range that is answered with 416, and any partial answer that is encoded, is asked again
// as a whole, once.
func (c *Client) Open(ctx context.Context, g Get) (*source.Response, error) {
	if g.Offset < 0 {
		return nil, fmt.Errorf("GET %s: negative offset %d", Printable(g.URL), g.Offset)
	}
	res, err := c.open(ctx, g, g.Offset > 0)
	if errors.Is(err, errAskWhole) {
		res, err = c.open(ctx, g, false)
	}
	return res, err
}

// errAskWhole tells that the answer to a Range is of no use.
var errAskWhole = errors.New("ask for the whole")

func (c *Client) open(ctx context.Context, g Get, ranged bool) (*source.Response, error) {
	header := g.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	for _, k := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
		header.Del(k)
	}
	if ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-", g.Offset))
		// Only a strong ETag may vouch for single bytes (RFC 9110 §13.1.5).
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

// judge makes of an answer a body that begins at the offset, or an error.
func (c *Client) judge(ctx context.Context, abort context.CancelCauseFunc, g Get, ranged bool, res *http.Response) (*source.Response, error) {
	unusable := func(format string, args ...any) error {
		return &AnswerError{Method: http.MethodGet, URL: Printable(g.URL), Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable && ranged:
		// The content may be shorter now, or be of exactly this length, or the origin be
		// wrong: the whole tells.
		return nil, errAskWhole
	case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent:
		return nil, c.refusal(ctx, abort, res, http.MethodGet, g.URL)
	}
	if g.Allows != nil {
		if err := g.Allows(res.Header); err != nil {
			return nil, err
		}
	}
	validator := validatorOf(res.Header)
	partial := res.StatusCode == http.StatusPartialContent
	// A 206 to an If-Range says by itself that the validator still holds.
	vouched := partial && ranged && validator == "" && strings.HasPrefix(g.Validator, `"`)
	if g.Validator != "" && validator != g.Validator && !vouched {
		return nil, &source.ChangedError{URL: Printable(g.URL), Was: g.Validator, Is: validator}
	}
	if vouched {
		validator = g.Validator
	}
	out := &source.Response{Length: -1, MediaType: res.Header.Get("Content-Type"), Validator: validator}
	if len(out.MediaType) > mediaTypeMax {
		return nil, unusable("Content-Type of %d bytes", len(out.MediaType))
	}
	body := c.newBody(ctx, abort, res.Body, http.MethodGet, g.URL)
	encoding, err := encodingOf(res.Header)
	if err != nil {
		return nil, unusable("%v", err)
	}
	if encoding == "gzip" && g.Length > 0 && res.ContentLength == g.Length && !partial {
		encoding = ""
	}
	switch {
	case encoding == "gzip" && partial:
		if !ranged {
			return nil, unusable("206 to a request without Range")
		}
		return nil, errAskWhole
	case encoding == "gzip":
		body.decode = true
		body.told = res.ContentLength
		body.skip = g.Offset
		body.ends = true
	case partial:
		if !ranged {
			return nil, unusable("206 to a request without Range")
		}
		r, err := parseContentRange(res.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return nil, unusable("%v", err)
		case r.start != g.Offset:
			return nil, unusable("its range begins at byte %d, asked was %d", r.start, g.Offset)
		case res.ContentLength >= 0 && res.ContentLength != r.end-r.start+1:
			return nil, unusable("%d bytes for the range %d-%d", res.ContentLength, r.start, r.end)
		}
		out.Length = r.total
		body.told = r.end - r.start + 1
	default:
		out.Length = res.ContentLength
		body.told = res.ContentLength
		body.skip = g.Offset
		// The last chunk says that this is all (RFC 9112 §7.1); a body that ends with its
		// connection may as well have been cut.
		body.ends = slices.Contains(res.TransferEncoding, "chunked")
	}
	switch {
	case g.Length > 0 && out.Length < 0:
		out.Length = g.Length
	case g.Length > 0 && out.Length != g.Length:
		return nil, &source.LengthError{Method: http.MethodGet, URL: Printable(g.URL), Want: g.Length, Got: out.Length}
	}
	if out.Length >= 0 && out.Length < g.Offset {
		return nil, unusable("the content has %d bytes, asked was byte %d", out.Length, g.Offset)
	}
	body.want, body.offset = -1, g.Offset
	if out.Length >= 0 {
		body.want = out.Length - g.Offset
	}
	body.wrong = source.LengthError{Method: http.MethodGet, URL: Printable(g.URL), Want: out.Length}
	out.Body = body
	return out, nil
}

// mediaTypeMax bounds a Content-Type, in bytes (as piece.Facts does).
const mediaTypeMax = 255

// validatorOf is the ETag, or else the Last-Modified.
func validatorOf(h http.Header) string {
	if v := h.Get("ETag"); v != "" {
		return v
	}
	return h.Get("Last-Modified")
}

// encodingOf is "" for identity, or "gzip".
func encodingOf(h http.Header) (string, error) {
	switch v := strings.ToLower(strings.TrimSpace(strings.Join(h.Values("Content-Encoding"), ","))); v {
	case "", "identity":
		return "", nil
	case "gzip", "x-gzip":
		return "gzip", nil
	default:
		return "", fmt.Errorf("it is encoded as %.40q, asked was identity", v)
	}
}

// contentRange is a Content-Range; total is −1 when it is not told.
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

// digits reads a number without sign.
func digits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// body is an origin's body from the asked offset on. One goroutine reads it.
type body struct {
	c     *Client
	ctx   context.Context
	abort context.CancelCauseFunc
	rc    io.ReadCloser
	what  string

	decode bool
	zr     *gzip.Reader
	skip   int64 // bytes to drop first
	told   int64 // raw bytes that the answer said it has, −1 unknown
	raw    int64 // raw bytes read
	want   int64 // bytes that the reader is to get, −1 unknown
	got    int64
	offset int64 // of the first byte that the reader gets
	ends   bool  // the body itself says where it ends, so an early end is no cut
	wrong  source.LengthError
	err    error

	watchdog *time.Timer
	silent   atomic.Bool
}

func (c *Client) newBody(ctx context.Context, abort context.CancelCauseFunc, rc io.ReadCloser, method string, u *url.URL) *body {
	b := &body{c: c, ctx: ctx, abort: abort, rc: rc, what: method + " " + Printable(u), told: -1, want: -1}
	b.watchdog = time.AfterFunc(time.Hour, func() {
		b.silent.Store(true)
		abort(os.ErrDeadlineExceeded)
	})
	b.watchdog.Stop()
	return b
}

// rawReader reads the wire, with the watchdog running while it waits.
type rawReader struct{ *body }

func (r rawReader) Read(p []byte) (int, error) {
	r.watchdog.Reset(r.c.cfg.IdleTimeout)
	n, err := r.rc.Read(p)
	r.watchdog.Stop()
	r.raw += int64(n)
	switch {
	case r.told >= 0 && r.raw > r.told:
		return max(0, n-int(r.raw-r.told)), fmt.Errorf("more than the %d bytes that were told", r.told)
	case err == nil:
	case r.silent.Load():
		err = fmt.Errorf("no byte for %s: %w", r.c.cfg.IdleTimeout, os.ErrDeadlineExceeded)
	case r.ctx.Err() != nil:
		err = context.Cause(r.ctx)
	case errors.Is(err, io.EOF) && r.told >= 0 && r.raw < r.told:
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
			zr, err := gzip.NewReader(in)
			if err != nil {
				return 0, early(err)
			}
			b.zr = zr
		}
		in = b.zr
	}
	for b.skip > 0 {
		n, err := in.Read(p[:min(int64(len(p)), b.skip)])
		b.skip -= int64(n)
		if err != nil && b.skip > 0 {
			return 0, early(err)
		}
	}
	n, err := in.Read(p)
	b.got += int64(n)
	switch {
	case b.want >= 0 && b.got > b.want:
		n -= int(b.got - b.want)
		b.got = b.want
		return max(0, n), b.other(b.want+1, true)
	case errors.Is(err, io.EOF) && b.got < b.want && b.ends:
		return n, b.other(b.got, false)
	case errors.Is(err, io.EOF) && b.got < b.want:
		return n, fmt.Errorf("it ends at byte %d of %d: %w", b.offset+b.got, b.offset+b.want, io.ErrUnexpectedEOF)
	}
	return n, err
}

// other is the error of a body that gives so many bytes, or more, where others were known.
func (b *body) other(got int64, more bool) error {
	wrong := b.wrong
	wrong.Got, wrong.More = b.offset+got, more
	return &wrong
}

// early makes an end an unexpected one.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close ends the request; what was not read is not waited for.
func (b *body) Close() error {
	b.watchdog.Stop()
	b.abort(nil)
	if b.err == nil {
		b.err = fmt.Errorf("%s: body: %w", b.what, os.ErrClosed)
	}
	return b.rc.Close()
}
