package httporigin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Origin opens files by URL: a [source.Origin] for tasks of kind [task.Plain].
type Origin struct {
	*Client
	anyHeader bool
}

// New builds an origin and opens no connection.
func New(cfg Config) (*Origin, error) {
	c, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	return &Origin{c, cfg.AnyHeader}, nil
}

// Open implements [source.Origin]. Without a Validator in the spec it accepts any version of the file, also for
// a resumption: set it from the first answer. An answer that does not allow the spec's Share is a
// *[source.UnsharedError].
func (o *Origin) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	req, err := o.requestOf(spec)
	if err != nil {
		return nil, err
	}
	if offset > 0 && spec.Share == string(sharing.Flight) {
		return nil, &source.ChangedError{URL: secret.PrintableURL(req.URL)}
	}
	sent := make([]string, 0, len(req.Header))
	for name := range req.Header {
		sent = append(sent, name)
	}
	allows := func(h http.Header) error {
		if err := sharing.Confirm(sharing.Share(spec.Share), sent, h, time.Now()); err != nil {
			return &source.UnsharedError{URL: secret.PrintableURL(req.URL), Reason: err.Error()}
		}
		if _, err := encodingOf(h); err != nil {
			return &AnswerError{Method: http.MethodGet, URL: secret.PrintableURL(req.URL), Reason: err.Error()}
		}
		return nil
	}
	get := Get{Request: req, Offset: offset, Validator: spec.Validator, Length: spec.Known(), Allows: allows}
	if compressed(req.URL.Path) {
		get.Raw = func(bool) bool { return true }
	}
	return o.Client.Open(ctx, get)
}

// compressed reports whether a file is itself compressed by gzip, as its name says. For some servers, Content-Encoding
// is then a label of the file's type: decoded, it would not be the file of that name. Other encodings stay errors.
func compressed(path string) bool {
	path = strings.ToLower(path)
	return strings.HasSuffix(path, ".gz") || strings.HasSuffix(path, ".tgz")
}

// Window returns the bytes of a range of a file, with the spec's own headers, of the version that the spec's
// Validator names. Any other answer is an error.
func (o *Origin) Window(ctx context.Context, spec task.Spec, w sharing.Window) ([]byte, error) {
	req, err := o.requestOf(spec)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", w.Offset, w.Offset+w.Length-1))
	if sharing.StrongETag(spec.Validator) {
		req.Header.Set("If-Range", spec.Validator)
	}
	res, err := o.Ask(ctx, req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	unusable := func(format string, args ...any) error {
		return &AnswerError{Method: http.MethodGet, URL: secret.PrintableURL(req.URL),
			Reason: fmt.Sprintf(format, args...)}
	}
	whole := w.Offset == 0 && w.Length == spec.Length
	switch encoding, err := encodingOf(res.Header); {
	case err != nil || encoding != "":
		return nil, unusable("it is encoded")
	case validatorOf(res.Header) != spec.Validator:
		return nil, &source.ChangedError{URL: secret.PrintableURL(req.URL), Was: spec.Validator,
			Is: validatorOf(res.Header)}
	case res.StatusCode == http.StatusOK && whole:
	case res.StatusCode == http.StatusPartialContent:
		r, err := parseContentRange(res.Header.Get("Content-Range"))
		if err != nil || r.start != w.Offset || r.end != w.Offset+w.Length-1 || r.total >= 0 && r.total != spec.Length {
			return nil, unusable("Content-Range %.80q to a request for a range", res.Header.Get("Content-Range"))
		}
	default:
		return nil, unusable("%d to a request for a range", res.StatusCode)
	}
	b := make([]byte, w.Length)
	if _, err := io.ReadFull(res.Body, b); err != nil {
		return nil, unexpectedEOF(err)
	}
	if n, _ := res.Body.Read(make([]byte, 1)); n > 0 {
		return nil, unusable("more bytes than requested")
	}
	return b, nil
}

// ownHeaders are headers that this package sets itself or that belong to one connection.
var ownHeaders = map[string]bool{
	"Accept-Encoding": true, "Range": true, "If-Range": true, "Connection": true, "Content-Length": true,
	"Transfer-Encoding": true, "Te": true, "Trailer": true, "Upgrade": true, "Expect": true,
	"Proxy-Authorization": true, "Proxy-Connection": true, "Keep-Alive": true,
}

// OwnHeader reports whether a file's request never carries a header of its user by this name, because this package sets
// it itself or because it belongs to one connection.
func OwnHeader(name string) bool {
	name = textproto.CanonicalMIMEHeaderKey(name)
	return ownHeaders[name] || slices.Contains(conditions, name)
}

// requestOf builds the request of a spec and reveals its secrets, for the host of its URL. The error is a
// *[sharing.HeaderError] for a header that must not be forwarded, because specs also come from other hosts.
func (o *Origin) requestOf(spec task.Spec) (Request, error) {
	u, err := url.Parse(spec.URL)
	if err != nil {
		// The parser's error repeats the URL, which may hold a password.
		return Request{}, errors.New("the file's URL cannot be parsed")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Request{}, fmt.Errorf("%q is not an http or https URL", secret.PrintableURL(u))
	}
	header := http.Header{}
	for k, v := range spec.Header {
		k = textproto.CanonicalMIMEHeaderKey(k)
		if ownHeaders[k] {
			continue
		}
		if err := sharing.Forwardable(k); err != nil && !o.anyHeader {
			return Request{}, err
		}
		header.Set(k, v.Reveal())
	}
	for _, a := range spec.Accept {
		header.Add("Accept", a)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		basic := http.Request{Header: header}
		basic.SetBasicAuth(u.User.Username(), password)
		u.User = nil
	}
	if !spec.Authorization.IsZero() {
		header.Set("Authorization", spec.Authorization.Reveal())
	}
	return Request{URL: u, Header: header}, nil
}

// Info describes a file before its download.
type Info struct {
	// Length in bytes, −1 if the origin does not declare it or encodes the file.
	Length int64
	// MediaType is the Content-Type, unchanged.
	MediaType string
	// Validator is the ETag, else the Last-Modified; empty if the origin sends neither.
	Validator string
	// Ranges is true if the origin claims to support Range.
	Ranges bool
}

// Probe returns the identity of a file. It sends a HEAD, then a GET of one byte if the origin does not support
// HEAD (405, 501) or a signed URL allows only GET (400, 403). The error is a *[source.StatusError] if the
// origin refuses.
func (o *Origin) Probe(ctx context.Context, spec task.Spec) (Info, error) {
	info, _, err := o.Examine(ctx, spec)
	return info, err
}

// Examine is Probe; it also returns the answer that [sharing.Decide] judges.
func (o *Origin) Examine(ctx context.Context, spec task.Spec) (Info, sharing.Answer, error) {
	req, err := o.requestOf(spec)
	if err != nil {
		return Info{}, sharing.Answer{}, err
	}
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	req.Method = http.MethodHead
	res, err := o.Do(ctx, req)
	if err != nil {
		return Info{}, sharing.Answer{}, err
	}
	res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return infoOf(placeOf(req.URL), res, res.Header.Get("Accept-Ranges") == "bytes")
	case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusForbidden, http.StatusBadRequest:
	default:
		return Info{}, sharing.Answer{}, o.statusError(ctx, abort, res, http.MethodHead, req.URL)
	}
	req.Method = http.MethodGet
	req.Header.Set("Range", "bytes=0-0")
	if res, err = o.Do(ctx, req); err != nil {
		return Info{}, sharing.Answer{}, err
	}
	// Closing cuts off the rest of a 200.
	defer res.Body.Close()
	if res.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		// An empty file has no first byte (RFC 9110 §14.1.2).
		res.Body.Close()
		req.Header.Del("Range")
		if res, err = o.Do(ctx, req); err != nil {
			return Info{}, sharing.Answer{}, err
		}
		defer res.Body.Close()
	}
	switch res.StatusCode {
	case http.StatusOK:
		return infoOf(placeOf(req.URL), res, false)
	case http.StatusPartialContent:
		info, a, err := infoOf(placeOf(req.URL), res, true)
		if err != nil {
			return Info{}, sharing.Answer{}, err
		}
		info.Length = -1
		if encoding, _ := encodingOf(res.Header); encoding == "" {
			r, err := parseContentRange(res.Header.Get("Content-Range"))
			if err != nil || r.start != 0 {
				return Info{}, sharing.Answer{}, &AnswerError{
					Method: http.MethodGet, URL: secret.PrintableURL(req.URL),
					Reason: fmt.Sprintf("Content-Range %.80q to a request for the first byte",
						res.Header.Get("Content-Range")),
				}
			}
			info.Length = r.total
		}
		o.drain(res) // the byte may never come
		return info, a, nil
	default:
		return Info{}, sharing.Answer{}, o.statusError(ctx, abort, res, http.MethodGet, req.URL)
	}
}

// placeOf returns the URL to which a redirect led, without its query, which may sign it. The place is part of a file's
// name in the cluster ([sharing.Answer]), so all versions must spell it alike; a log may spell it otherwise.
func placeOf(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// infoOf reads an answer; asked is the place that the request named.
func infoOf(asked string, res *http.Response, ranges bool) (Info, sharing.Answer, error) {
	info := Info{
		Length: res.ContentLength, MediaType: res.Header.Get("Content-Type"), Validator: validatorOf(res.Header),
		Ranges: ranges,
	}
	answer := sharing.Answer{Header: res.Header}
	if at := placeOf(res.Request.URL); at != asked {
		answer.Place = at
	}
	encoding, err := encodingOf(res.Header)
	if err != nil {
		return Info{}, answer, &AnswerError{Method: res.Request.Method, URL: secret.PrintableURL(res.Request.URL),
			Reason: err.Error()}
	}
	if encoding != "" {
		// Length and ranges count encoded bytes.
		info.Length, info.Ranges = -1, false
	}
	return info, answer, nil
}
