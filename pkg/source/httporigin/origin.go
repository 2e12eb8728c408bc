package httporigin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"

	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// Origin gives files by their URL: a [source.Origin] for tasks of kind [task.Plain].
type Origin struct{ *Client }

// New builds an origin; it connects to nobody.
func New(cfg Config) (*Origin, error) {
	c, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	return &Origin{c}, nil
}

// Open implements [source.Origin]. Without a Validator in the spec any version of the file is
// taken, a resumption included: set it from the first answer.
func (o *Origin) Open(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error) {
	req, err := requestOf(spec)
	if err != nil {
		return nil, err
	}
	return o.Client.Open(ctx, Get{Request: req, Offset: offset, Validator: spec.Validator, Length: spec.Known()})
}

// mine are headers that this package sets itself or that belong to one connection.
var mine = map[string]bool{
	"Accept-Encoding": true, "Range": true, "If-Range": true, "Connection": true, "Content-Length": true, "Transfer-Encoding": true,
	"Te": true, "Trailer": true, "Upgrade": true, "Expect": true, "Proxy-Authorization": true, "Proxy-Connection": true, "Keep-Alive": true,
}

// requestOf reveals a spec's secrets, for the host of its URL.
func requestOf(spec task.Spec) (Request, error) {
	u, err := url.Parse(spec.URL)
	if err != nil {
		// The parser's own words repeat the URL, and it may hold a password.
		return Request{}, errors.New("the file's URL cannot be parsed")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Request{}, fmt.Errorf("%q is no http or https URL", Printable(u))
	}
	header := http.Header{}
	for k, v := range spec.Header {
		if k = textproto.CanonicalMIMEHeaderKey(k); !mine[k] {
			header.Set(k, v.Reveal())
		}
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

// Info is what an origin tells of a file beforehand.
type Info struct {
	// Length in bytes, −1 when the origin does not tell or encodes what it sends.
	Length int64
	// MediaType is the Content-Type to the letter.
	MediaType string
	// Validator is the ETag, or else the Last-Modified; empty when there is neither.
	Validator string
	// Ranges says that the origin claims to honour a Range.
	Ranges bool
}

// Probe asks for a file's identity by HEAD, and by a GET of one byte where the origin knows
// no HEAD (405, 501) or where a signed URL allows GET alone (400, 403). The error is a
// *[source.StatusError] where the origin refuses.
func (o *Origin) Probe(ctx context.Context, spec task.Spec) (Info, error) {
	req, err := requestOf(spec)
	if err != nil {
		return Info{}, err
	}
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	req.Method = http.MethodHead
	res, err := o.Do(ctx, req)
	if err != nil {
		return Info{}, err
	}
	res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return infoOf(res, res.Header.Get("Accept-Ranges") == "bytes")
	case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusForbidden, http.StatusBadRequest:
	default:
		return Info{}, o.refusal(ctx, abort, res, http.MethodHead, req.URL)
	}
	req.Method = http.MethodGet
	req.Header.Set("Range", "bytes=0-0")
	if res, err = o.Do(ctx, req); err != nil {
		return Info{}, err
	}
	// What a 200 goes on to send is cut off by closing.
	defer res.Body.Close()
	if res.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		// An empty file has no first byte (RFC 9110 §14.1.2).
		res.Body.Close()
		req.Header.Del("Range")
		if res, err = o.Do(ctx, req); err != nil {
			return Info{}, err
		}
		defer res.Body.Close()
	}
	switch res.StatusCode {
	case http.StatusOK:
		return infoOf(res, false)
	case http.StatusPartialContent:
		info, err := infoOf(res, true)
		if err != nil {
			return Info{}, err
		}
		info.Length = -1
		if encoding, _ := encodingOf(res.Header); encoding == "" {
			r, err := parseContentRange(res.Header.Get("Content-Range"))
			if err != nil || r.start != 0 {
				return Info{}, &AnswerError{Method: http.MethodGet, URL: Printable(req.URL), Reason: fmt.Sprintf("Content-Range %.80q for the first byte", res.Header.Get("Content-Range"))}
			}
			info.Length = r.total
		}
		_, _ = io.CopyN(io.Discard, res.Body, 1)
		return info, nil
	default:
		return Info{}, o.refusal(ctx, abort, res, http.MethodGet, req.URL)
	}
}

func infoOf(res *http.Response, ranges bool) (Info, error) {
	info := Info{Length: res.ContentLength, MediaType: res.Header.Get("Content-Type"), Validator: validatorOf(res.Header), Ranges: ranges}
	encoding, err := encodingOf(res.Header)
	if err != nil {
		return Info{}, &AnswerError{Method: res.Request.Method, URL: Printable(res.Request.URL), Reason: err.Error()}
	}
	if encoding != "" {
		// The length is that of the encoded bytes, and so are the ranges.
		info.Length, info.Ranges = -1, false
	}
	return info, nil
}
