package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/darter-io/darter/pkg/secret"
)

const redacted = "[redacted]"

// ParseLevel parses debug, info, warn or error.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q: want debug, info, warn or error", s)
}

// NewLogger returns a logger that writes lines to w: "text" for people, or "json" for machines, with durations in
// seconds. A *[slog.LevelVar] as level can change at run time. The logger redacts values whose type may hold a secret:
// headers, URLs, requests, errors with a URL; a [secret.String] redacts itself.
func NewLogger(w io.Writer, level slog.Leveler, format string) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: replace}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Value.Kind() == slog.KindDuration {
				return slog.Float64(a.Key, a.Value.Duration().Seconds())
			}
			return replace(groups, a)
		}
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", format)
}

// TakeStandardLog redirects package log, which libraries use, to l: net/http reports there what origins do wrong. Only
// the main function calls it, because that log belongs to the process.
func TakeStandardLog(l *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(libraries{l})
}

// libraries is the output of package log.
type libraries struct{ l *slog.Logger }

// Write logs one line of a library. It removes the bytes of a response that net/http quotes: they may be secret.
func (w libraries) Write(line []byte) (int, error) {
	text, _, quotes := strings.Cut(strings.TrimSpace(string(line)), " starting with ")
	if quotes {
		text += " (bytes omitted)"
	}
	w.l.Warn("message of a library", "text", text)
	return len(line), nil
}

// secretKeys are the names of attributes whose plain strings are redacted.
var secretKeys = map[string]bool{"authorization": true, "password": true, "secret": true, "token": true, "cookie": true}

// replace redacts one attribute.
func replace(_ []string, a slog.Attr) slog.Attr {
	if secretKeys[strings.ToLower(a.Key)] && a.Value.Kind() == slog.KindString && a.Value.String() != "" {
		return slog.String(a.Key, redacted)
	}
	if a.Value.Kind() != slog.KindAny {
		return a
	}
	switch v := a.Value.Any().(type) {
	case http.Header:
		a.Value = slog.AnyValue(safeHeader(v))
	case *url.URL:
		a.Value = slog.StringValue(secret.PrintableURL(v))
	case url.URL:
		a.Value = slog.StringValue(secret.PrintableURL(&v))
	case *http.Request:
		if v != nil {
			a.Value = slog.StringValue(v.Method + " " + secret.PrintableURL(v.URL))
		}
	case *http.Response:
		if v != nil {
			a.Value = slog.StringValue(v.Status)
		}
	case error:
		a.Value = slog.StringValue(safeError(v))
	}
	return a
}

// safeHeader keeps all names, and the values of headers that hold no secret.
func safeHeader(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for k, v := range h {
		switch http.CanonicalHeaderKey(k) {
		case "Accept", "Content-Type", "Content-Length", "Content-Range", "Range", "Etag", "Last-Modified",
			"Retry-After", "User-Agent", "Date", "Docker-Content-Digest", "Accept-Ranges":
			out[k] = strings.Join(v, ", ")
		default:
			out[k] = redacted
		}
	}
	return out
}

// safeError is the text of an error without the secrets of the URLs in it: net/http reports redirects with their signed
// query.
func safeError(err error) string {
	text := fmt.Sprint(err) // not err.Error(), which panics on a nil pointer in an interface
	for e := err; e != nil; {
		var bad *url.Error
		if !errors.As(e, &bad) || bad == nil {
			break
		}
		text = strings.ReplaceAll(text, bad.URL, secret.PrintableURLText(bad.URL))
		e = bad.Err
	}
	return text
}
