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

// ParseLevel reads debug, info, warn or error.
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

// NewLogger writes lines to w: "text" for people, "json" for machines, where a duration is
// a number of seconds. A *[slog.LevelVar]
// as level may be changed while the program runs. Values that carry secrets by their type are
// redacted: [secret.String] by itself; headers, URLs, requests and errors with a URL
// inside here.
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

// TakeStandardLog makes lines of l of what libraries print with package log: net/http tells
// there of origins that break its rules. For the main function, since that log is the
// process's.
func TakeStandardLog(l *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(libraries{l})
}

// libraries is the output of package log.
type libraries struct{ l *slog.Logger }

// Write logs one line of a library. What net/http quotes of an origin's answer may be anybody's
// content, and is left out.
func (w libraries) Write(line []byte) (int, error) {
	text, _, quotes := strings.Cut(strings.TrimSpace(string(line)), " starting with ")
	if quotes {
		text += " (its bytes are left out)"
	}
	w.l.Warn("a library complains", "text", text)
	return len(line), nil
}

// secretKeys name attributes that are redacted although their value is a plain string.
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

// safeHeader keeps names and the values of headers that hold no secret.
func safeHeader(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for k, v := range h {
		switch http.CanonicalHeaderKey(k) {
		case "Accept", "Content-Type", "Content-Length", "Content-Range", "Range", "Etag", "Last-Modified", "Retry-After",
			"User-Agent", "Date", "Docker-Content-Digest", "Accept-Ranges":
			out[k] = strings.Join(v, ", ")
		default:
			out[k] = redacted
		}
	}
	return out
}

// safeError is an error's text, without the secrets of the URLs that it carries as such:
// those that net/http reports hold the signed query of a redirect.
func safeError(err error) string {
	text := fmt.Sprint(err) // not err.Error(): a nil pointer in an interface is not worth a panic
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
