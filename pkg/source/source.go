// Package source is the contract of an origin: a place outside the cluster that tasks come from, a
// registry or a web server.
//
// One streaming GET opens a task at its origin. However the origin answers a Range, the caller's body always begins at
// the requested offset. The suite in sourcetest is the contract in full. Start at [Origin].
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

// Origin opens tasks. Safe for concurrent use.
type Origin interface {
	// Open starts one GET of the whole task (offset 0) or of the rest from offset, in bytes. It returns
	// as soon as the headers are there. If the origin answers a Range with 200, Open skips to offset
	// itself, so that the body always begins there (RFC 9110 §14.2). If the origin's file has changed
	// since the download began, a resumption ends in a *[ChangedError] and mixes nothing.
	//
	// The error is a *[StatusError] if the origin replied with an error status. Cancelling ctx ends the
	// body too.
	Open(ctx context.Context, spec task.Spec, offset int64) (*Response, error)
}

// Response is an open task.
type Response struct {
	// Body yields the bytes from the offset on; a body that ends before Length fails with
	// [io.ErrUnexpectedEOF]. It is identity-encoded. The caller closes it.
	Body io.ReadCloser
	// Length of the whole task in bytes: the origin's, or the spec's if the origin states none; −1 if
	// neither does. A body that has more or less ends in a *[LengthError].
	Length int64
	// MediaType is the Content-Type, unchanged, empty if there was none.
	MediaType string
	// Validator is the ETag, or else the Last-Modified.
	Validator string
	// Modified is the Last-Modified, zero if there was none.
	Modified time.Time
	// Skips says that the origin ignored the Range: Body reads past the bytes before the offset.
	Skips bool
}

// PartOrigin is an [Origin] that can ask for a part of a task, so that the origin sends no byte behind it.
type PartOrigin interface {
	// OpenPart is Open of the bytes [offset, end); its body ends there.
	OpenPart(ctx context.Context, spec task.Spec, offset, end int64) (*Response, error)
}

// OpenPart opens the bytes [offset, end) of a task at an origin of any kind.
func OpenPart(ctx context.Context, o Origin, spec task.Spec, offset, end int64) (*Response, error) {
	if p, ok := o.(PartOrigin); ok {
		return p.OpenPart(ctx, spec, offset, end)
	}
	res, err := o.Open(ctx, spec, offset)
	if err != nil {
		return nil, err
	}
	res.Body = Cut(res.Body, end-offset)
	return res, nil
}

// Cut returns a body that ends after n bytes.
func Cut(body io.ReadCloser, n int64) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(body, n), body}
}

// HeaderPlain marks the response to an anonymous [RegistryRequest] that is what the registry answers without any token,
// for instance because its token service gives none. A registry cannot set it. Its value is PlainAnswer, or
// PlainUntried if the registry asks for a token and its token service could not be asked.
const (
	HeaderPlain  = "X-Darter-Plain"
	PlainAnswer  = "true"
	PlainUntried = "untried"
)

// RegistryRequest is one HTTP request to a registry on behalf of a client of the mirror, for other
// things than a task's bytes: a HEAD of a manifest or blob, a list of tags.
type RegistryRequest struct {
	// Upstream is the registry in the spelling of oci.ParseHost.
	Upstream string
	// Method is GET or HEAD.
	Method string
	// Path begins with "/v2/" and is not encoded; Query is, and may be empty.
	Path, Query string
	// Header holds the client's headers that the registry needs, Authorization and Accept; its values
	// may be secret.
	Header http.Header
	// Anonymous asks with the registry's anonymous token, if there is neither an Authorization nor a credential of this
	// node. Without it the reply is then the registry's challenge. A refusal with [HeaderPlain] is that challenge, too.
	Anonymous bool
	// Bare never sends a credential of this node: the reply is for other hosts.
	Bare bool
	// Agent is the client's User-Agent, empty without a client. The registry gets it behind Darter's own.
	Agent string
}

// agentMax bounds the User-Agent of a client, in bytes.
const agentMax = 200

// CleanAgent returns a client's User-Agent as it may be a comment in another one (RFC 9110 §10.1.5): printable ASCII
// of at most 200 bytes, with its parentheses in pairs or without any.
func CleanAgent(agent string) string {
	agent = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '\\' {
			return -1
		}
		return r
	}, agent[:min(len(agent), agentMax)])
	open := 0
	for _, r := range agent {
		switch r {
		case '(':
			open++
		case ')':
			open--
		}
		if open < 0 {
			break
		}
	}
	if open != 0 {
		agent = strings.NewReplacer("(", "", ")", "").Replace(agent)
	}
	return strings.TrimSpace(agent)
}

// ChangedError reports that the origin's file has changed since the download began, or that nothing proves that it has
// not. Was and Is are validators, empty if there is none.
type ChangedError struct{ URL, Was, Is string }

func (e *ChangedError) Error() string {
	quoted := func(validator string) string {
		return fmt.Sprintf("%.80q", strings.Trim(validator, `"`))
	}
	switch {
	case e.Was == "":
		return fmt.Sprintf("%s: its origin sends no ETag and no date, so the download cannot resume; start again", e.URL)
	case e.Is == "":
		return fmt.Sprintf("%s: the origin sends no ETag and no date any more (it was %s), so the download cannot resume; "+
			"start again", e.URL, quoted(e.Was))
	}
	return fmt.Sprintf("%s changed during the download (its ETag or date was %s and is now %s); start again", e.URL,
		quoted(e.Was), quoted(e.Is))
}

// LengthError reports that the origin's length differs from the known one, which came from a manifest, a
// HEAD, an earlier reply or a signed DigestRun. Another attempt does not help by itself.
type LengthError struct {
	// URL without user info and query; both are empty if they are unknown.
	Method, URL string
	// Want is the known length, Got the origin's, in bytes.
	Want, Got int64
	// More says that the origin has at least Got bytes; the rest was not read.
	More bool
}

func (e *LengthError) Error() string {
	least := ""
	if e.More {
		least = "at least "
	}
	text := fmt.Sprintf("the origin has %s%d bytes, and %d were expected", least, e.Got, e.Want)
	if e.URL != "" {
		text = e.Method + " " + e.URL + ": " + text
	}
	return text
}

// UnsharedError reports that an origin's reply may not be shared as widely as requested.
type UnsharedError struct{ URL, Reason string }

func (e *UnsharedError) Error() string {
	return fmt.Sprintf("%s may not be shared: %s; ask again, and each client gets it directly from the origin",
		e.URL, e.Reason)
}

// StatusError is an origin's error reply.
type StatusError struct {
	// URL without user info and query: it may be printed.
	Method, URL string
	Status      int
	// Header as the origin sent it; only the headers that [Failure] keeps are passed on.
	Header http.Header
	// Body cut at [api.FailureMax].
	Body []byte
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
}

// patienceMax is the longest Retry-After that a request waits for. Clients wait ten seconds for a first
// byte, and many may wait for one seed's GET or one owner's lookup: after an error all of them would go
// to the registry, one by one.
const patienceMax = 5 * time.Second

// Patience is the pause that an origin's reply asks for before the next attempt, 0 if it asks for none or
// for a longer one than clients wait (RFC 9110 §10.2.3, RFC 6585 §4).
func Patience(status int, header http.Header) time.Duration {
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return 0
	}
	after := header.Get("Retry-After")
	seconds, err := strconv.ParseUint(after, 10, 16)
	wait := time.Duration(seconds) * time.Second
	if err != nil {
		at, err := http.ParseTime(after)
		now, dated := http.ParseTime(header.Get("Date")) // by the same clock
		if err != nil || dated != nil {
			return 0
		}
		wait = at.Sub(now)
	}
	if wait > patienceMax {
		return 0
	}
	return max(wait, 0)
}

// Failure turns an error of Open into the one that clients get. A *[StatusError] keeps its status, body
// and the headers that clients need; any other error is a 502, or a 504 if it was a timeout. A
// *[ChangedError] and an *[UnsharedError] are marked as such.
func Failure(err error) *api.Failure {
	var reply *StatusError
	if errors.As(err, &reply) {
		f := &api.Failure{Status: reply.Status, Body: reply.Body, Message: err.Error(), Header: map[string]string{}}
		for _, k := range []string{"Content-Type", "Retry-After", "Www-Authenticate"} {
			if v := reply.Header.Get(k); v != "" {
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
