package dfget

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/darter-io/darter/pkg/api"
)

// Code is the exit status of dfget. Scripts rely on the numbers, so they never change.
type Code int

// The exit codes, by cause.
const (
	OK          Code = 0
	Failed      Code = 1   // every error that has no code of its own
	Usage       Code = 2   // wrong flags, settings or URLs; no download was tried
	Disk        Code = 3   // the target cannot be written
	NoDaemon    Code = 4   // no dfdaemon answers
	Denied      Code = 5   // the origin or the node's settings deny access: 401, 403, 407
	NotFound    Code = 6   // the origin does not have it: 404, 410
	Unreachable Code = 7   // the origin does not answer, breaks off, or has an error of its own
	WrongDigest Code = 8   // the file does not match --digest
	Changed     Code = 9   // the file changed at its origin during the download
	Timeout     Code = 10  // --timeout expired
	Interrupted Code = 130 // Ctrl-C or SIGTERM; FILE.part is kept
)

// Error is a failure with its exit code.
type Error struct {
	Code Code
	Err  error
	// retry is true if another try may succeed.
	retry bool
	// broke is true if the body of an answer broke off.
	broke bool
	// silent is true if the origin gave no answer.
	silent bool
	// reported is true if an event of the progress has reported the error.
	reported bool
}

// Reported reports whether an event of --progress=json has already reported err, so that the program must not
// print it again.
func Reported(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.reported
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit status for err.
func ExitCode(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Failed
}

// errorOf adds the exit code, and advice, to an error of the daemon or the origin.
func errorOf(j *job, e *api.FileError) *Error {
	out := &Error{Code: Failed, Err: e}
	if !strings.Contains(e.Error(), j.meter.url) {
		out.Err = fmt.Errorf("%s: %w", j.meter.url, e)
	}
	switch e.Kind {
	case api.FileBadRequest:
		out.Code = Usage
	case api.FileForbidden:
		out.Code = Denied
	case api.FileRefused:
		out.Code, out.retry = codeOf(e.Status)
		switch {
		case e.Status == http.StatusProxyAuthRequired:
			out.Err = fmt.Errorf("%w\nthe URL of the proxy (HTTPS_PROXY, HTTP_PROXY, or files.proxy of dfdaemon) "+
				"needs a user and a password", out.Err)
		case e.Status == http.StatusUnauthorized && j.auth.IsZero():
			out.Err = fmt.Errorf("%w\ngive a name and a password with --user and --password-file or in ~/.netrc, "+
				"or a token with -H \"Authorization: …\"", out.Err)
		case out.Code == Denied:
			out.Err = fmt.Errorf("%w\nthe origin does not accept the given credentials and headers", out.Err)
		}
	case api.FileUnreachable:
		out.Code, out.retry, out.silent = Unreachable, !e.Untrusted && !e.Final, true
	case api.FileChanged:
		out.Code = Changed
	case api.FileDigestWrong:
		out.Code = WrongDigest
	case api.FileNoSpace:
		out.Code = Disk
		out.Err = fmt.Errorf("%w\na node's store is full, not the target; --direct downloads without it", out.Err)
	}
	return out
}

// codeOf maps the status of an origin's error answer. retry is true if the error may be temporary.
func codeOf(status int) (code Code, retry bool) {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return Denied, false
	case http.StatusNotFound, http.StatusGone:
		return NotFound, false
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return Unreachable, true
	}
	if status >= 500 {
		return Unreachable, false
	}
	return Failed, false
}
