package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

const (
	// forwardMax is how many header fields one file's request may forward.
	forwardMax = 64
	// urlMax bounds a file's URL, in bytes.
	urlMax = 8 << 10
	// holdAfter is how long a download stays known after a client was served.
	holdAfter = 2 * time.Second
	// anonymousLife is how long a file without ETag, Last-Modified and length counts as
	// the same one: nobody could tell a newer version from it. Longer spares the origin,
	// shorter notices a change sooner.
	anonymousLife = 10 * time.Minute
)

// files gives dfget its files (api.PathFiles). It is a plain handler, because gin's writer
// hides sendfile.
type files struct {
	// probe asks the origin what it gives to these headers; that it gives it at all is the
	// client's right to what the node may have cached.
	probe func(ctx context.Context, spec task.Spec) (httporigin.Info, error)
	open  func(ctx context.Context, spec task.Spec) (*peer.Content, error)
	now   func() time.Time
	pulls *pulls
	// settings in force; they change while requests run.
	settings atomic.Pointer[config.DaemonFiles]
}

func refuse(kind api.FileErrorKind, format string, args ...any) *api.FileError {
	return &api.FileError{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		tellRefusal(w, http.StatusMethodNotAllowed, refuse(api.FileBadRequest, "files are asked for by GET, not %s", r.Method))
		return
	}
	started := f.now()
	spec, file, bad := f.request(r)
	if bad != nil {
		tellRefusal(w, bad.Code(), bad)
		return
	}
	told := telemetry.Pull{Kind: task.Plain, Name: withoutQuery(file.URL)}
	defer func() {
		told.Total = f.now().Sub(started)
		f.pulls.finished(told)
	}()
	info, err := f.probe(r.Context(), spec)
	probed := f.now()
	told.Stages = append(told.Stages, telemetry.Stage{Name: "asking the origin", Took: probed.Sub(started)})
	if err != nil {
		e := failed(r.Context(), &told, err)
		tellRefusal(w, e.Code(), e)
		return
	}
	spec.Validator, spec.Length = info.Validator, max(0, info.Length)
	spec.ID = identify(file, info, spec.Digest, started).ID()

	told.Task = spec.ID
	content, err := f.open(r.Context(), spec)
	opened := f.now()
	told.Stages = append(told.Stages, telemetry.Stage{Name: "first facts", Took: opened.Sub(probed)})
	if err != nil {
		e := failed(r.Context(), &told, err)
		tellRefusal(w, e.Code(), e)
		return
	}
	// Let go a moment later: a client that has just got everything asks where it came from,
	// and a download that nobody holds is forgotten.
	defer time.AfterFunc(holdAfter, func() { content.Close() })
	f.serve(w, r, content, &told, started)
	first := opened
	if told.FirstByte > 0 {
		first = started.Add(told.FirstByte)
		told.Stages = append(told.Stages, telemetry.Stage{Name: "first byte", Took: first.Sub(opened)})
	}
	told.Stages = append(told.Stages, telemetry.Stage{Name: "body", Took: f.now().Sub(first)})
}

// identify names the version of a file that its origin has now.
func identify(file task.File, info httporigin.Info, digest string, now time.Time) task.File {
	file.Validator, file.Length = info.Validator, info.Length
	if digest != "" {
		// Whoever asks for a digest has a task of his own: a wrong one revokes that task
		// and nobody else's.
		file.Tag += "\x00" + digest
	}
	if info.Validator == "" {
		file.Tag += "\x00" + now.UTC().Truncate(anonymousLife).Format(time.RFC3339)
	}
	return file
}

// request reads what is asked for.
func (f *files) request(r *http.Request) (task.Spec, task.File, *api.FileError) {
	bad := func(format string, args ...any) (task.Spec, task.File, *api.FileError) {
		return task.Spec{}, task.File{}, refuse(api.FileBadRequest, format, args...)
	}
	q := r.URL.Query()
	text := q.Get(api.FileURL)
	if text == "" || len(text) > urlMax {
		return bad("the URL is missing or longer than %d bytes", urlMax)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return bad("the URL is no absolute http:// or https:// URL")
	}
	if u.User != nil {
		return bad("a user does not belong into the URL: send it as %sAuthorization", api.ForwardPrefix)
	}
	u.Fragment = ""
	if !allowed(f.settings.Load().AllowHosts, u.Hostname()) {
		return task.Spec{}, task.File{}, refuse(api.FileForbidden,
			"files from %s are not allowed on this node; its operator can add the host to files.allowHosts", u.Hostname())
	}
	spec := task.Spec{Kind: task.Plain, URL: u.String(), Digest: q.Get(api.FileDigest)}
	if spec.Digest != "" {
		if _, err := task.ParseID(spec.Digest); err != nil || strings.HasPrefix(spec.Digest, "file:") {
			return bad("the digest is none of sha256: or sha512: and hex digits")
		}
	}
	for name, values := range r.Header {
		name, ok := strings.CutPrefix(name, api.ForwardPrefix)
		if !ok || name == "" {
			continue
		}
		value := secret.String(strings.Join(values, ", "))
		if name == "Authorization" {
			spec.Authorization = value
			continue
		}
		if spec.Header == nil {
			spec.Header = map[string]secret.String{}
		}
		if spec.Header[name] = value; len(spec.Header) > forwardMax {
			return bad("more than %d headers to forward", forwardMax)
		}
	}
	return spec, task.File{URL: f.canonical(u, q[api.FileIgnore]), Tag: q.Get(api.FileTag), Application: q.Get(api.FileApplication)}, nil
}

// canonical is the URL as far as it names the file: without the parameters that only sign.
func (f *files) canonical(u *url.URL, ignore []string) string {
	c := *u
	c.Scheme, c.Host = strings.ToLower(c.Scheme), strings.ToLower(c.Host)
	if port := map[string]string{"http": ":80", "https": ":443"}[c.Scheme]; strings.HasSuffix(c.Host, port) {
		c.Host = strings.TrimSuffix(c.Host, port)
	}
	if c.Path == "" {
		c.Path = "/"
	}
	var kept []string
	own := f.settings.Load().IgnoreQuery
	for _, pair := range strings.Split(c.RawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if pair != "" && !matches(own, name) && !matches(ignore, name) {
			kept = append(kept, pair)
		}
	}
	c.RawQuery, c.ForceQuery = strings.Join(kept, "&"), false
	return c.String()
}

// matches reports whether a name is one of the patterns; a * at the end stands for any rest.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if prefix, open := strings.CutSuffix(p, "*"); open && len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) || strings.EqualFold(p, name) {
			return true
		}
	}
	return false
}

// allowed reports whether a host is one of the patterns; *.example.com stands for all hosts
// under it, * for every one.
func allowed(patterns []string, host string) bool {
	for _, p := range patterns {
		if suffix, under := strings.CutPrefix(p, "*."); p == "*" || strings.EqualFold(p, host) ||
			under && len(host) > len(suffix) && strings.EqualFold(host[len(host)-len(suffix)-1:], "."+suffix) {
			return true
		}
	}
	return false
}

// serve writes what the client lacks of the content.
func (f *files) serve(w http.ResponseWriter, r *http.Request, content *peer.Content, told *telemetry.Pull, started time.Time) {
	facts, etag := content.Facts(), `"`+string(told.Task)+`"`
	window, code := oci.Window{Length: facts.Length}, http.StatusOK
	h := w.Header()
	h.Set("ETag", etag)
	h.Set("Accept-Ranges", "bytes")
	if asked := r.Header.Get("Range"); asked != "" && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == etag) {
		windows, err := oci.ParseRange(asked, facts.Length)
		if err != nil {
			told.Result = telemetry.OK // a client that has all asks so
			h.Set("Content-Range", oci.UnsatisfiedRange(facts.Length))
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if len(windows) == 1 {
			window, code = windows[0], http.StatusPartialContent
			h.Set("Content-Range", window.ContentRange(facts.Length))
		}
	}
	if facts.MediaType != "" {
		h.Set("Content-Type", facts.MediaType)
	} else {
		h.Set("Content-Type", "application/octet-stream")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.FormatInt(window.Length, 10))
	cached := content.Cached()
	if cached {
		h.Set(api.HeaderCached, "true")
	}
	w.WriteHeader(code)
	var (
		sent int64
		err  error
	)
	if window.Length > 0 {
		reader := content.NewReader(r.Context(), window.Offset, window.Length)
		sent, err = reader.WriteTo(&firstWrite{ResponseWriter: w, since: started, took: &told.FirstByte})
		reader.Close()
	}
	told.Bytes = f.pulls.split(sent, content.Sources(), cached)
	switch {
	case err == nil:
		told.Result = telemetry.OK
	case r.Context().Err() != nil, left(err):
		told.Result = telemetry.Canceled
	default:
		// The body ends short; net/http closes the connection, and the client asks again.
		told.Result, told.Err = telemetry.Failed, err
	}
}

// failed turns what went wrong into words for the client, and for the line of the log.
func failed(ctx context.Context, told *telemetry.Pull, err error) *api.FileError {
	e := httporigin.Refusal(err)
	told.Result, told.Err = telemetry.Failed, err
	var host *httporigin.HostError
	switch {
	case ctx.Err() != nil:
		told.Result = telemetry.Canceled
	case e.Kind == api.FileRefused && e.Status < http.StatusInternalServerError:
		told.Result = telemetry.Refused
	case e.Untrusted:
		e.Message += "; the node's operator can name its authority in files.ca"
	case errors.As(err, &host):
		e.Message += "; the node's operator can add it to files.allowHosts"
	case e.Kind == api.FileForbidden:
		e.Message += "; the node's operator can allow it with files.allowAddresses"
	}
	return e
}

// withoutQuery is a URL as it is told: its query may be a signature.
func withoutQuery(u string) string {
	path, _, _ := strings.Cut(u, "?")
	return path
}

func tellRefusal(w http.ResponseWriter, code int, e *api.FileError) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(e) // a client that is gone needs no error
}

// firstWrite notes when the first byte leaves, and keeps sendfile possible.
type firstWrite struct {
	http.ResponseWriter
	since time.Time
	took  *time.Duration
}

func (f *firstWrite) note() {
	if *f.took == 0 {
		*f.took = time.Since(f.since)
	}
}

func (f *firstWrite) Write(b []byte) (int, error) {
	f.note()
	return f.ResponseWriter.Write(b)
}

// ReadFrom implements [io.ReaderFrom] by the server's own, which knows sendfile.
func (f *firstWrite) ReadFrom(r io.Reader) (int64, error) {
	f.note()
	return io.Copy(f.ResponseWriter, r)
}
