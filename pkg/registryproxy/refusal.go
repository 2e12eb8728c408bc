package registryproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
)

// refusal is an answer that is an error, in the format of the distribution API (OCI
// distribution-spec, "Error Codes").
type refusal struct {
	status  int
	header  http.Header
	code    errcode.ErrorCode
	message string
	// detail is what the upstream said in a format of its own.
	detail string
	// body is the upstream's own when it is in the format already; it is passed on to the
	// letter.
	body []byte
	// gone says that the client left, as far as anybody knows.
	gone bool
}

// Error makes a refusal the error that [Pull] tells.
func (e *refusal) Error() string { return e.message }

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, code: codeFor(status, ""), message: fmt.Sprintf(format, args...)}
}

// as gives the refusal a code that the status alone does not tell.
func (e *refusal) as(code errcode.ErrorCode) *refusal {
	e.code = code
	return e
}

// hiding puts what the client asked for in the place of what that means.
func (e *refusal) hiding(meaning, asked string) *refusal {
	e.message = strings.ReplaceAll(e.message, meaning, asked)
	e.detail = strings.ReplaceAll(e.detail, meaning, asked)
	e.body = bytes.ReplaceAll(e.body, []byte(meaning), []byte(asked))
	return e
}

// codeFor is the error code that a registry gives with a status.
func codeFor(status int, endpoint string) errcode.ErrorCode {
	switch status {
	case http.StatusUnauthorized:
		return errcode.ErrorCodeUnauthorized
	case http.StatusForbidden:
		return errcode.ErrorCodeDenied
	case http.StatusNotFound:
		switch endpoint {
		case endpointManifest:
			return errcode.ErrorCodeManifestUnknown
		case endpointBlob:
			return errcode.ErrorCodeBlobUnknown
		}
		return errcode.ErrorCodeNameUnknown
	case http.StatusMethodNotAllowed:
		return errcode.ErrorCodeUnsupported
	case http.StatusRequestedRangeNotSatisfiable:
		return errcode.ErrorCodeRangeInvalid
	case http.StatusTooManyRequests:
		return errcode.ErrorCodeTooManyRequests
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return errcode.ErrorCodeUnavailable
	}
	return errcode.ErrorCodeUnknown
}

// passedOn are the headers of an upstream's refusal that its client must see, unchanged.
var passedOn = []string{"WWW-Authenticate", "Retry-After"}

// answered turns a registry's refusal into ours.
func (x *exchange) answered(s saying) *refusal {
	e := x.worded(s.status, s.body)
	for k, v := range s.header {
		e.header[k] = v
	}
	e.message = fmt.Sprintf("%s answered %d %s to %s", x.t.upstream, s.status, http.StatusText(s.status), x.t.path())
	return e
}

// failed turns an error of an attempt that began with ctx into a refusal.
func (x *exchange) failed(err error) *refusal {
	if left := x.r.Context(); left.Err() != nil {
		if cause := context.Cause(left); !errors.Is(cause, context.Canceled) {
			// A server that cuts says why; net/http says context.Canceled of a client that left.
			return refuse(http.StatusServiceUnavailable, "%s was not brought to its end: %v; ask again, here in a moment or elsewhere", x.t.path(), cause)
		}
		e := refuse(http.StatusServiceUnavailable, "the client left: %v", err)
		e.gone = true
		return e
	}
	if errors.Is(context.Cause(x.ctx), errLate) {
		return refuse(http.StatusGatewayTimeout, "%s gave no byte of %s within %s", x.t.upstream, x.t.path(), x.limit)
	}
	var f *api.Failure
	if !errors.As(err, &f) {
		return refuse(http.StatusServiceUnavailable, "%v", err)
	}
	if x.others(f) {
		// A challenge would lead this client's credentials to the other registry, and the
		// words tell of another client's repository.
		return refuse(http.StatusServiceUnavailable, "%s was being brought for others, who could not have it; ask again", x.t.path())
	}
	e := x.worded(f.Status, f.Body)
	for _, k := range passedOn {
		for name, v := range f.Header {
			if http.CanonicalHeaderKey(name) == http.CanonicalHeaderKey(k) && v != "" {
				e.header.Set(k, v)
			}
		}
	}
	e.message = f.Message
	if f.Upstream != "" && f.Repository != x.t.repository {
		e.message = fmt.Sprintf("%s answered %d to somebody else who wants %s", f.Upstream, f.Status, x.t.path())
	}
	return e
}

// unreached turns "no answer" of an upstream into a refusal.
func (x *exchange) unreached(err error) *refusal {
	f := source.Failure(err)
	f.Upstream, f.Repository = x.t.upstream, x.t.repository
	return x.failed(f)
}

// worded begins a refusal with what an upstream said.
func (x *exchange) worded(status int, body []byte) *refusal {
	if status < 400 || status > 599 {
		status = http.StatusBadGateway
	}
	e := &refusal{status: status, header: http.Header{}, code: codeFor(status, x.t.endpoint)}
	switch {
	case isDistributionError(body):
		e.body = body
	case utf8.Valid(body):
		e.detail = string(body[:min(len(body), 512)])
	}
	// containerd repeats 408 and 429 at once and without a pause; a 503 sends it to its
	// next host. Clients without ?ns= do wait as Retry-After says.
	if x.t.namespace != "" && (status == http.StatusTooManyRequests || status == http.StatusRequestTimeout) {
		e.status = http.StatusServiceUnavailable
	}
	return e
}

// isDistributionError reports whether a body is in the format of the distribution API.
func isDistributionError(body []byte) bool {
	var envelope struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	return json.Unmarshal(body, &envelope) == nil && len(envelope.Errors) > 0 && envelope.Errors[0].Code != ""
}

// refuse writes a refusal. Nothing may have been written before.
func (x *exchange) refuse(e *refusal) {
	x.pull.Status, x.pull.Err = e.status, e
	if e.gone {
		// It is answered all the same: whatever ended its context, silence would be a 200.
		x.pull.Status = statusGone
	}
	body := e.body
	if body == nil {
		said := e.code.WithMessage(e.message)
		if e.detail != "" {
			said = said.WithDetail(e.detail)
		}
		body, _ = json.Marshal(errcode.Errors{said})
	}
	h := x.w.Header()
	// What was said of the content is not true of the error.
	for _, k := range []string{"ETag", "Docker-Content-Digest", "Accept-Ranges"} {
		h.Del(k)
	}
	for k, v := range e.header {
		h[k] = v
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(e.status)
	if x.r.Method != http.MethodHead {
		n, _ := x.w.Write(body)
		x.pull.Bytes = int64(n)
	}
}

// unsatisfied is the answer to a Range that cannot be served.
func unsatisfied(err error, total int64) *refusal {
	e := refuse(http.StatusRequestedRangeNotSatisfiable, "%v", err)
	e.header = http.Header{"Content-Range": {oci.UnsatisfiedRange(total)}}
	return e
}
