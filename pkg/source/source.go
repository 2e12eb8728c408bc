// Package source is the contract of an origin: a place outside the cluster that gives
// content, a registry or a web server.
//
// An origin is asked with one streaming GET; whatever it makes of a Range, the body that
// a caller sees begins where the caller asked. The suite in sourcetest is the contract in
// full. Start at [Origin].
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// Origin gives content. Safe for concurrent use.
type Origin interface {
	// Open starts one GET of the whole content (offset 0) or of the rest from offset.
	// It returns as soon as the headers are there. Where the origin answers a Range with
	// 200, Open skips to offset itself, so the body always begins there (RFC 9110 §14.2).
	// A resumed content that has changed meanwhile ends in a *[ChangedError], not in a mix.
	//
	// The error is a *[StatusError] where the origin answered with a refusal. Cancelling
	// ctx ends the body too.
	Open(ctx context.Context, spec task.Spec, offset int64) (*Response, error)
}

// Response is an origin's content from the asked offset on.
type Response struct {
	// Body yields the bytes from the asked offset; a body that ends before Length fails
	// with [io.ErrUnexpectedEOF]. It is identity-encoded. The caller closes it.
	Body io.ReadCloser
	// Length of the whole content in bytes: the origin's word, or where it tells none, what the
	// spec knew; −1 when neither tells. A body that has more or less ends in a *[LengthError].
	Length int64
	// MediaType is the Content-Type to the letter, empty when there was none.
	MediaType string
	// Validator is the ETag, or else the Last-Modified.
	Validator string
}

// RegistryRequest is what a client of the mirror wants to know of a registry, beyond content: may
// it have this, what does this tag mean, which tags are there.
type RegistryRequest struct {
	// Upstream is the registry in the spelling of oci.ParseHost.
	Upstream string
	// Method is GET or HEAD.
	Method string
	// Path begins with "/v2/" and is not encoded; Query is, and may be empty.
	Path, Query string
	// Header holds what the registry must know of the client, Authorization and Accept; its
	// values may be secret.
	Header http.Header
	// Anonymous asks, where there is neither an Authorization nor a credential of the
	// node's, with the token that the registry gives to anybody. Without it the answer is
	// then the registry's challenge.
	Anonymous bool
	// Bare never asks with a credential of the node's: the answer is for others.
	Bare bool
}

// ChangedError tells that the origin's content is no longer the one that was begun.
type ChangedError struct{ URL, Was, Is string }

func (e *ChangedError) Error() string {
	word := func(validator string) string {
		if validator == "" {
			return "none"
		}
		return fmt.Sprintf("%.80q", strings.Trim(validator, `"`))
	}
	return fmt.Sprintf("content of %s changed during the download (its ETag or date was %s and is now %s); start again", e.URL, word(e.Was), word(e.Is))
}

// LengthError tells that an origin's content is not as long as was known of it beforehand: from a
// manifest, a HEAD, an earlier answer or a signed run. Asking again does not help by itself.
type LengthError struct {
	// URL without user info and query; both are empty where the answer's are not known.
	Method, URL string
	// Want is the length that was known, Got the origin's, in bytes.
	Want, Got int64
	// More says that the origin has at least Got bytes; the rest was not read.
	More bool
}

func (e *LengthError) Error() string {
	least := ""
	if e.More {
		least = "at least "
	}
	text := fmt.Sprintf("the origin's content has %s%d bytes, and %d were known of it", least, e.Got, e.Want)
	if e.URL != "" {
		text = e.Method + " " + e.URL + ": " + text
	}
	return text
}

// UnsharedError tells that an origin's answer may not be shared as far as it was to be.
type UnsharedError struct{ URL, Reason string }

func (e *UnsharedError) Error() string {
	return fmt.Sprintf("%s may not be shared: %s; ask again, and each client gets it straight from its origin", e.URL, e.Reason)
}

// StatusError is an origin's refusal.
type StatusError struct {
	// URL without user info and query: it may be printed.
	Method, URL string
	Status      int
	// Header as the origin sent it; only what api.Failure names is passed on.
	Header http.Header
	// Body cut at [api.FailureMax].
	Body []byte
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
}

// patienceMax is the longest Retry-After that is waited for. Whoever waits for a first byte has
// ten seconds, and behind one seed's GET, or one owner's question, a whole crowd may wait: told
// the refusal instead, all of it would go to the registry, one by one.
const patienceMax = 5 * time.Second

// Patience is how long an origin that answered so wants to be left alone before it is asked once
// more, 0 where it does not say or where that is longer than a client waits (RFC 9110 §10.2.3,
// RFC 6585 §4).
func Patience(status int, header http.Header) time.Duration {
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return 0
	}
	seconds, err := strconv.ParseUint(header.Get("Retry-After"), 10, 16)
	if wait := time.Duration(seconds) * time.Second; err == nil && wait <= patienceMax {
		return wait
	}
	return 0
}

// Failure turns what an origin's Open returned into the words that clients are told. A
// refusal keeps its status, body and the headers that clients need; anything else is a 502,
// or a 504 when it was a timeout. A *[ChangedError] and an *[UnsharedError] are marked as such.
func Failure(err error) *api.Failure {
	var refused *StatusError
	if errors.As(err, &refused) {
		f := &api.Failure{Status: refused.Status, Body: refused.Body, Message: err.Error(), Header: map[string]string{}}
		for _, k := range []string{"Content-Type", "Retry-After", "Www-Authenticate"} {
			if v := refused.Header.Get(k); v != "" {
				f.Header[k] = v
			}
		}
		return f
	}
	var changed *ChangedError
	if errors.As(err, &changed) {
		return &api.Failure{Status: http.StatusBadGateway, Message: err.Error(), Changed: true}
	}
	var unshared *UnsharedError
	if errors.As(err, &unshared) {
		return &api.Failure{Status: http.StatusBadGateway, Message: err.Error(), Unshared: true}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return &api.Failure{Status: http.StatusGatewayTimeout, Message: err.Error()}
	}
	return &api.Failure{Status: http.StatusBadGateway, Message: err.Error()}
}
