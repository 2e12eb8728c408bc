package registryproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// apiError is a response that is an error, in the format of the distribution API (OCI
// distribution-spec, "Error Codes").
type apiError struct {
	status  int
	header  http.Header
	code    errcode.ErrorCode
	message string
	// body is the upstream's own, which is passed on unchanged with its Content-Type; nil for an error of the mirror.
	// Clients act on codes: a code that the registry did not send can end a pull that the registry's own reply would not.
	body []byte
	// uncoded says that the message goes out as text: the upstream gave a status without a body.
	uncoded bool
	// gone says that the client left.
	gone bool
}

// Error makes an apiError the error of a [Pull].
func (e *apiError) Error() string { return e.message }

func newError(status int, format string, args ...any) *apiError {
	return &apiError{status: status, code: codeFor(status, ""), message: fmt.Sprintf(format, args...)}
}

// withCode gives the error a code that does not follow from the status alone.
func (e *apiError) withCode(code errcode.ErrorCode) *apiError {
	e.code = code
	return e
}

// hiding replaces the digest of a tag by the tag: a client that may not read the digest must not learn it.
func (e *apiError) hiding(digest, tag string) *apiError {
	e.message = strings.ReplaceAll(e.message, digest, tag)
	e.body = bytes.ReplaceAll(e.body, []byte(digest), []byte(tag))
	return e
}

// codeFor is the error code that registries send with a status.
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

// statusGone is what logs record for a client that left, by a convention of nginx.
const statusGone = 499

// passedOn are the headers of an upstream's error that the client must see, unchanged.
var passedOn = []string{"WWW-Authenticate", "Retry-After"}

// registryError passes a registry's error reply on.
func (req *request) registryError(reply *access.RefusedError) *apiError {
	e := req.upstreamError(reply.Status, reply.Header.Get("Content-Type"), reply.Body)
	if reply.Status == http.StatusUnauthorized {
		req.pings.putChallenge(req.target.upstream, req.generation, reply.Header.Values("WWW-Authenticate"))
	}
	for _, k := range passedOn {
		if v := reply.Header.Values(k); len(v) > 0 {
			e.header[http.CanonicalHeaderKey(k)] = v
		}
	}
	status := http.StatusText(reply.Status)
	e.message = fmt.Sprintf("%s answered %d %s to %s", req.target.upstream, reply.Status, status, req.target.path())
	return e
}

// failed is the client's error for an attempt that failed or that ctx ended.
func (req *request) failed(err error) *apiError {
	path := req.target.path()
	if left := req.r.Context(); left.Err() != nil {
		if cause := context.Cause(left); !errors.Is(cause, context.Canceled) {
			// A server that stops states a cause; for a client that left, net/http cancels the context without one.
			return newError(http.StatusServiceUnavailable,
				"%s was not sent: %v; ask again, here in a moment or elsewhere", path, cause)
		}
		e := newError(http.StatusServiceUnavailable, "the client left: %v", err)
		e.gone = true
		return e
	}
	if errors.Is(context.Cause(req.ctx), errDeadline) {
		return req.late()
	}
	var f *api.Failure
	if !errors.As(err, &f) {
		return newError(http.StatusServiceUnavailable, "%v", err)
	}
	if req.isForeign(f) {
		// A challenge would lead this client's credentials to the other registry, and the message names
		// another client's repository.
		return newError(http.StatusServiceUnavailable,
			"%s was being downloaded for other clients, and their registry refused it; ask again", path)
	}
	if f.Upstream != "" && f.Asker != req.asker() {
		return req.othersFailure(f)
	}
	e := req.upstreamError(f.Status, f.Header["Content-Type"], f.Body)
	for _, k := range passedOn {
		for name, v := range f.Header {
			if http.CanonicalHeaderKey(name) == http.CanonicalHeaderKey(k) && v != "" {
				e.header.Set(k, v)
			}
		}
	}
	e.message = f.Message
	return e
}

// asker identifies the client and its credentials to the registry; see [task.Spec.Asker].
func (req *request) asker() string {
	var key []byte
	if req.cfg.NamesKey != nil {
		key = req.cfg.NamesKey()
	}
	return task.Spec{
		Upstream: req.target.upstream, Repository: req.target.repository, Authorization: secret.String(req.authorization),
	}.Asker(key)
}

// othersFailure is the client's error for the failure of another client's attempt, with another repository or other
// credentials. It leaves out the registry's words, which may name what is private.
func (req *request) othersFailure(f *api.Failure) *apiError {
	e := req.upstreamError(f.Status, "", nil)
	e.uncoded = false
	e.message = fmt.Sprintf("%s answered %d to another client that asked for %s", f.Upstream, f.Status, req.target.path())
	if len(f.Body) == 0 && f.Repository == req.target.repository {
		e.message = f.Message // this program wrote it: how the attempt failed
	}
	for name, v := range f.Header {
		if http.CanonicalHeaderKey(name) == "Retry-After" && v != "" {
			e.header.Set("Retry-After", v)
		}
	}
	return e
}

// late is the client's error after it waited too long for its first byte.
func (req *request) late() *apiError {
	waited, path := time.Since(req.began).Round(time.Second), req.target.path()
	var came int64
	if req.look != nil {
		came = req.look().Came
	}
	if came > 0 {
		return newError(http.StatusGatewayTimeout, "%s gave %d bytes of %s within %s, but not those that you asked for; "+
			"ask again in a moment", req.target.upstream, came, path, waited)
	}
	return newError(http.StatusGatewayTimeout, "%s gave no byte of %s within %s", req.target.upstream, path, waited)
}

// unreachable is the client's error for an upstream that did not reply.
func (req *request) unreachable(err error) *apiError {
	f := source.Failure(err)
	f.Upstream, f.Repository, f.Asker = req.target.upstream, req.target.repository, req.asker()
	return req.failed(f)
}

// upstreamError begins an error with the upstream's status and words.
func (req *request) upstreamError(status int, contentType string, body []byte) *apiError {
	if status < 400 || status > 599 {
		status, body = http.StatusBadGateway, nil
	}
	e := &apiError{status: status, header: http.Header{}, code: codeFor(status, "")}
	cut := len(body) >= api.FailureMax && !json.Valid(body)
	switch {
	case len(body) > 0 && !(cut && strings.Contains(contentType, "json")):
		e.body = body
		e.header.Set("Content-Type", errorType(contentType, body))
	case status == http.StatusNotFound || e.code == errcode.ErrorCodeUnknown && status < 500:
		e.uncoded = true
	}
	// containerd repeats 408 and 429 at once and without a pause; a 503 sends it to its
	// next host. Clients without ?ns= do wait as Retry-After says.
	if req.target.namespace != "" && (status == http.StatusTooManyRequests || status == http.StatusRequestTimeout) {
		e.status = http.StatusServiceUnavailable
	}
	return e
}

// errorType is the Content-Type of an upstream's error body. A page becomes text: it would run in a browser as
// if it came from this host.
func errorType(contentType string, body []byte) string {
	base, _, err := mime.ParseMediaType(contentType)
	switch {
	case err == nil && (strings.HasSuffix(base, "/json") || strings.HasSuffix(base, "+json")):
		return contentType
	case isDistributionError(body):
		return "application/json"
	}
	return "text/plain; charset=utf-8"
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

// writeError writes an error. Nothing may have been written before.
func (req *request) writeError(e *apiError) {
	req.pull.Status, req.pull.Err = e.status, e
	if e.gone {
		// The client gets a response all the same: without one net/http would send a 200.
		req.pull.Status = statusGone
	}
	body := e.body
	if body == nil {
		body, _ = json.Marshal(errcode.Errors{e.code.WithMessage(e.message)})
	}
	contentType := "application/json"
	if e.uncoded && e.body == nil {
		body, contentType = []byte(e.message+"\n"), "text/plain; charset=utf-8"
	}
	h := req.w.Header()
	// The blob's headers are not true of the error.
	for _, k := range []string{"ETag", "Docker-Content-Digest", "Accept-Ranges"} {
		h.Del(k)
	}
	h.Set("Content-Type", contentType)
	for k, v := range e.header {
		h[k] = v
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	req.w.WriteHeader(e.status)
	if req.r.Method != http.MethodHead {
		n, _ := req.w.Write(body)
		req.pull.Bytes = int64(n)
	}
}
