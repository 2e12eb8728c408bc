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

// errStopping is the cause with which a server ends the context of a request at the end of its drain. If a client
// leaves, net/http ends the context with [context.Canceled].
var errStopping = errors.New("this node is stopping")

// unanswered is the message of the response to a request whose handler wrote none, in the formats of the distribution
// API (OCI distribution-spec, "Error Codes") and of the node's own APIs.
const unanswered = "this node ended its work on the request before it had a response; ask again here in a moment, " +
	"or at another server"

// retryAfter is the Retry-After of such a response (RFC 9110 §10.2.3), in seconds.
const retryAfter = 1

// stopping is the message of the response to a request that comes while the server drains.
const stopping = "this node is stopping and takes no new requests; ask again here in a moment, or at another server"

// refuse writes a 503 with a message, without the headers that the handler set. The client uses the connection no more.
func refuse(w http.ResponseWriter, r *http.Request, message string) {
	type line struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, _ := json.Marshal(struct {
		Errors []line `json:"errors"`
		Error  string `json:"error"`
	}{[]line{{"UNAVAILABLE", message}}, message})
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
		_, _ = w.Write(body) // the client is gone if this fails
	}
}

// answer is a response writer that records whether the handler has begun its response. It keeps the abilities of the
// server's writer: sendfile by ReadFrom, Hijack, and deadlines by Unwrap.
type answer struct {
	http.ResponseWriter
	// begun is true if a status was written, or the handler took the connection.
	begun bool
	// hijacked is called when the handler has taken the connection.
	hijacked func()
}

// Unwrap returns the server's writer to [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements [http.ResponseWriter]. An informational status (RFC 9110 §15.2) is no final response, except
// 101, which ends HTTP on the connection.
func (a *answer) WriteHeader(status int) {
	a.begun = a.begun || status >= http.StatusOK || status == http.StatusSwitchingProtocols
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [io.Writer]. An empty write begins no response.
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

// ReadFrom implements [io.ReaderFrom] with the server's writer, which can use sendfile.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(a.ResponseWriter, r)
	a.begun = a.begun || n > 0
	return n, err
}

// FlushError sends the written bytes. Before the first one it does nothing, because it would send an empty 200.
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
	if err == nil {
		a.begun = true
		a.hijacked()
	}
	return c, rw, err
}
