package httpserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
)

// errStopping is the cause that ends the context of a request that a server cuts at the end of
// its drain. A client that leaves ends it with context.Canceled, by net/http.
var errStopping = errors.New("this node is stopping")

// unanswered is what a client hears whose handler ended without an answer, in the formats of the
// distribution API (OCI distribution-spec, "Error Codes") and of the node's own APIs.
const unanswered = "this node ended its work on the request before there was an answer; ask again, here in a " +
	"moment or elsewhere"

// retryAfter is when such a client may ask again (RFC 9110 §10.2.3), in seconds.
const retryAfter = 1

// answered makes sure that every request is answered: net/http takes a handler that returns
// without a word for a 200 with an empty body, under whatever headers it had set by then. It gets
// a 503 instead. A panic passes, and net/http ends the connection.
func answered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w}
		h.ServeHTTP(a, r)
		if !a.begun {
			refuseUnanswered(w, r)
		}
	})
}

// refuseUnanswered writes that there is no answer, and nothing of what was to be said in one.
func refuseUnanswered(w http.ResponseWriter, r *http.Request) {
	type line struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(struct {
		Errors []line `json:"errors"`
		Error  string `json:"error"`
	}{[]line{{"UNAVAILABLE", unanswered}}, unanswered})
	h := w.Header()
	for name := range h {
		if name != "Docker-Distribution-Api-Version" {
			delete(h, name)
		}
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Retry-After", strconv.Itoa(retryAfter))
	h.Set("Connection", "close")
	w.WriteHeader(http.StatusServiceUnavailable)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone needs no words
	}
}

// answer is a server's writer that knows whether the handler has begun to answer. It hands on what
// the server's own writer can: sendfile by ReadFrom, taking the connection, deadlines by Unwrap.
type answer struct {
	http.ResponseWriter
	// begun means that a status is on its way, or that the connection is the handler's own.
	begun bool
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements [http.ResponseWriter]. An informational status (RFC 9110 §15.2) is no
// answer, but for 101, which is the last word in HTTP.
func (a *answer) WriteHeader(status int) {
	a.begun = a.begun || status >= http.StatusOK || status == http.StatusSwitchingProtocols
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [io.Writer]. To write nothing begins no answer.
func (a *answer) Write(b []byte) (int, error) {
	if len(b) == 0 && !a.begun {
		return 0, nil
	}
	a.begun = true
	return a.ResponseWriter.Write(b)
}

// WriteString implements [io.StringWriter].
func (a *answer) WriteString(s string) (int, error) {
	if s == "" && !a.begun {
		return 0, nil
	}
	a.begun = true
	return io.WriteString(a.ResponseWriter, s)
}

// ReadFrom implements [io.ReaderFrom] by the server's own, which knows sendfile.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(a.ResponseWriter, r)
	a.begun = a.begun || n > 0
	return n, err
}

// FlushError sends what was written. Before there is anything it would send an empty 200.
func (a *answer) FlushError() error {
	if !a.begun {
		return nil
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Flush implements [http.Flusher].
func (a *answer) Flush() { _ = a.FlushError() }

// Hijack implements [http.Hijacker].
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	a.begun = a.begun || err == nil
	return c, rw, err
}
