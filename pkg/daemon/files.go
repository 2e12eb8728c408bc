package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

const (
	// forwardMax is how many header fields one file's request may forward.
	forwardMax = 64
	// urlMax bounds a file's URL, in bytes.
	urlMax = 8 << 10
	// holdAfter is how long a download stays open after the response to its client.
	holdAfter = 2 * time.Second
	// attemptsMax bounds how often the daemon examines a file that changes before its download, or whose comparison
	// fails. After that, the client gets it straight from the origin.
	attemptsMax = 3
)

// files serves files to dfget ([api.PathFiles]). [sharing.Decide] decides which requests share a download; files acts
// on the decision. It is a plain handler because gin writes a response for a handler that wrote none.
type files struct {
	// probe asks the origin for the file's metadata with the client's headers. A successful reply permits the client
	// to read the file from this node's cache.
	probe func(ctx context.Context, spec task.Spec) (httporigin.Info, sharing.Answer, error)
	// window fetches a range of the file from the origin, with the client's own headers.
	window func(ctx context.Context, spec task.Spec, w sharing.Window) ([]byte, error)
	open   func(ctx context.Context, spec task.Spec) (*peer.Content, error)
	// direct opens the file at its origin for one client, without the store.
	direct func(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error)
	// drop deletes a task from the store.
	drop func(id task.ID) error
	// replaced reports whether clients may hold other bytes of a task; see [peer.Engine.Replaced].
	replaced func(id task.ID) bool
	now      func() time.Time
	// quota is the most bytes that the store may hold, 0 without a bound.
	quota func() int64
	// key returns the HMAC key of the secrets in a task's name; see [identity.Identity.NamesKey].
	key         func() []byte
	transfers   transfers
	comparisons comparisons
	pulls       *pulls
	// deleting are the deletions of what failed transfers left.
	deleting sync.WaitGroup
	// settings in force; they change while requests run.
	settings atomic.Pointer[config.DaemonFiles]
}

func newFiles(n *node.Node, p *pulls) *files {
	f := &files{
		probe: n.Origins.Files.Examine, window: n.Origins.Files.Window, open: n.Engine.Open,
		direct: n.Engine.Passthrough, drop: n.Engine.Drop, quota: func() int64 { return n.Store.Usage().Quota },
		replaced: n.Engine.Replaced, now: time.Now, key: n.NamesKey, pulls: p,
	}
	if len(f.key()) == 0 {
		// With a key of its own, no other host can test credentials against a name, nor compute the name.
		own := []byte(rand.Text())
		f.key = func() []byte { return own }
	}
	return f
}

// Run waits until ctx ends, and then for the deletions that still run.
func (f *files) Run(ctx context.Context) error {
	<-ctx.Done()
	f.deleting.Wait()
	return nil
}

func newFileError(kind api.FileErrorKind, format string, args ...any) *api.FileError {
	return &api.FileError{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		writeError(w, http.StatusMethodNotAllowed,
			newFileError(api.FileBadRequest, "files are read with GET, not %s", r.Method))
		return
	}
	started := f.now()
	q, bad := f.request(r)
	if bad != nil {
		writeError(w, bad.Code(), bad)
		return
	}
	pull := telemetry.Pull{Kind: task.Plain, Name: secret.PrintableURLText(q.file.URL)}
	defer func() {
		pull.Total = f.now().Sub(started)
		f.pulls.finished(pull)
	}()
	last := started
	stage := func(name string) {
		now := f.now()
		pull.Stages = append(pull.Stages, telemetry.Stage{Name: name, Took: now.Sub(last)})
		last = now
	}
	held, why, err := f.find(r.Context(), q, &pull, stage)
	if err != nil {
		e := fileError(r.Context(), &pull, err)
		writeError(w, e.Code(), e)
		return
	}
	opened := f.now()
	if held == nil {
		f.serveDirect(w, r, q, why, &pull, started)
		stage("body")
		return
	}
	// Release it a moment later: after the last byte, the client asks for the sources of the download, and the engine
	// forgets a download without clients.
	defer time.AfterFunc(holdAfter, held.release)
	f.serve(w, r, held, &pull, started)
	first := opened
	if pull.FirstByte > 0 {
		first = started.Add(pull.FirstByte)
		pull.Stages = append(pull.Stages, telemetry.Stage{Name: "first byte", Took: first.Sub(opened)})
	}
	pull.Stages = append(pull.Stages, telemetry.Stage{Name: "body", Took: f.now().Sub(first)})
}

// held is a file that is open for one client.
type held struct {
	*peer.Content
	// version is the ETag of the response, empty if the file has no version.
	version string
	// modified is when the origin modified the file, zero if it does not say.
	modified time.Time
	release  func()
	broke    func() // called if the body ends short; can be nil
	// tail is the end of the file, which last compares before it is sent. A nil last means: nothing is left to compare.
	tail sharing.Window
	last func(context.Context) error
}

// find examines the file at its origin and opens it for the requests that may share it. If it returns nil and no
// error, the client gets the file straight from the origin, for the reason why.
func (f *files) find(ctx context.Context, q fileRequest, pull *telemetry.Pull,
	stage func(string)) (h *held, why string, err error) {
	var changed error // the error of the last download
	was := ""         // the version that it was started for
	for range attemptsMax {
		info, answer, err := f.probe(ctx, q.spec)
		stage("asking the origin")
		switch {
		case err != nil:
			return nil, "", err
		case changed != nil && info.Validator != was:
			return nil, "", changed
		case changed != nil:
			return nil, "its origin answers HEAD in another way than GET", nil
		}
		// No engine begins what cannot fit: the origin would send its beginning in vain.
		if quota := f.quota(); quota > 0 && info.Length > quota {
			return nil, noSpace, nil
		}
		d := sharing.Decide(q.covers, answer, f.key(), f.now())
		var c *comparison // nil for a file without a version
		switch d.Share {
		case sharing.Direct:
			return nil, d.Reason, nil
		case sharing.Flight:
			h, err = f.openTransfer(ctx, q, info, d)
		default:
			h, c, err = f.openVersion(ctx, q, info, answer, d, pull)
		}
		if errors.Is(err, errNoComparison) {
			q.covers.CompareFailed = true
			continue
		}
		stage("metadata")
		var failure *api.Failure
		switch {
		case err == nil:
			h.modified = httporigin.Modified(answer.Header)
		case ctx.Err() == nil && errors.As(err, &failure) && failure.Personal() && c != nil && c.lenient:
			// The origin answers the HEAD of anonymous clients, and not their GET: this client's own may do.
			q.covers.CompareFailed = true
			continue
		case ctx.Err() == nil && errors.As(err, &failure) && failure.Unshared:
			return nil, failure.Message, nil
		case ctx.Err() == nil && (errors.Is(err, piece.ErrNoSpace) || errors.As(err, &failure) && failure.Full):
			return nil, noSpace, nil
		case ctx.Err() == nil && errors.As(err, &failure) && failure.Changed:
			changed, was = err, info.Validator
			continue
		default:
			return nil, "", err
		}
		if c == nil || !c.needed {
			return h, "", nil
		}
		err = f.compare(ctx, c, h)
		stage("comparison")
		if err == nil {
			return h, "", nil
		}
		h.release()
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		q.covers.CompareFailed = true
	}
	if changed != nil {
		return nil, "", changed
	}
	return nil, "its origin does not show that this client and others get the same bytes", nil
}

// openVersion opens a file that has a version, and returns the comparison that the client's bytes may need. The error
// is [errNoComparison] if only equal requests may share the file.
func (f *files) openVersion(ctx context.Context, q fileRequest, info httporigin.Info, answer sharing.Answer,
	d sharing.Decision, pull *telemetry.Pull) (*held, *comparison, error) {
	spec := q.spec // the request to the origin on behalf of all that share the file
	spec.Validator, spec.Length = info.Validator, max(0, info.Length)
	c := &comparison{spec: spec}
	if d.Share == sharing.Public {
		spec, d = f.anonymous(ctx, q, spec, info, answer.Place, d)
		c.lenient = d.Share != sharing.Public
	}
	pull.Task = identify(q.file, info, d.Cover, spec.Digest).ID()
	spec.ID, spec.Share = pull.Task, string(d.Share)
	c.note = string(spec.ID) + q.covers.Fingerprint(f.key())
	equal, known := f.comparisons.result(c.note, f.now())
	c.needed = d.Compare && !equal
	if c.needed && known && !c.lenient {
		return nil, c, errNoComparison
	}
	if c.needed && !f.pulls.embedded() {
		// Before the download begins, because an origin that serves no ranges would send a body in vain.
		if err := f.beginComparison(ctx, c); err != nil && !c.lenient {
			if ctx.Err() == nil {
				f.comparisons.add(c.note, false, f.now())
			}
			return nil, c, errNoComparison
		}
	}
	h, err := f.hold(ctx, spec)
	return h, c, err
}

// noSpace is why a file that no store can hold is not shared.
const noSpace = "a node's store has no space for it"

// hold opens a file that has a version.
func (f *files) hold(ctx context.Context, spec task.Spec) (*held, error) {
	content, err := f.open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &held{Content: content, version: `"` + string(spec.ID) + `"`, release: func() { content.Close() }}, nil
}

// anonymous lets all users share a file that its origin calls public, if the origin gives the same version to a
// request without credentials. That request fetches the file. If the origin serves ranges, the daemon compares the
// client's own bytes as well.
func (f *files) anonymous(ctx context.Context, q fileRequest, spec task.Spec, info httporigin.Info, place string,
	d sharing.Decision) (task.Spec, sharing.Decision) {
	bare := spec
	bare.Authorization = ""
	reply, answer, err := f.probe(ctx, bare)
	if err != nil || reply.Validator != info.Validator || reply.Length != info.Length || answer.Place != place {
		return spec, d
	}
	open := sharing.Decide(q.covers.Anonymous(), answer, f.key(), f.now())
	if open.Share != sharing.Equal {
		return spec, d
	}
	open.Compare = info.Ranges
	return bare, open
}

// identify returns the current version of a file, as all requests that share it name it.
func identify(file task.File, info httporigin.Info, cover, digest string) task.File {
	file.Validator, file.Length, file.Cover = info.Validator, info.Length, cover
	if digest != "" {
		// Requests with a digest have a task of their own: a wrong digest revokes that task only.
		file.Tag += "\x00" + digest
	}
	return file
}

// fileRequest is a client's request for a file.
type fileRequest struct {
	spec   task.Spec
	file   task.File // without version
	covers sharing.Request
}

// request parses a client's request.
func (f *files) request(r *http.Request) (fileRequest, *api.FileError) {
	bad := func(format string, args ...any) (fileRequest, *api.FileError) {
		return fileRequest{}, newFileError(api.FileBadRequest, format, args...)
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad("the query cannot be parsed, and a parameter that is left out would change the request: %v", err)
	}
	text := q.Get(api.FileURL)
	if text == "" || len(text) > urlMax {
		return bad("the URL is missing or longer than %d bytes", urlMax)
	}
	u, err := httporigin.ParseURL(text)
	if err != nil {
		return bad("%v", err)
	}
	if u.User != nil {
		return bad("the URL must not contain a user: send it as %sAuthorization", api.ForwardPrefix)
	}
	u.Fragment = ""
	if !hostmatch.Match(f.settings.Load().AllowHosts, u.Hostname()) {
		return fileRequest{}, newFileError(api.FileForbidden,
			"files from %s are not allowed on this node; its operator can add the host to files.allowHosts",
			u.Hostname())
	}
	spec := task.Spec{Kind: task.Plain, URL: u.String(), Digest: q.Get(api.FileDigest)}
	if spec.Digest != "" {
		if _, err := task.ParseID(spec.Digest); err != nil || strings.HasPrefix(spec.Digest, "file:") {
			return bad("the digest is not sha256: or sha512: followed by hex digits")
		}
	}
	covers := sharing.Request{Ignore: q[api.FileIgnore]}
	var control http.Header
	if covers.Header, control, err = forwarded(r.Header); err != nil {
		return bad("%v", err)
	}
	for name, value := range covers.Header {
		if name == "Authorization" {
			spec.Authorization = value
			continue
		}
		if spec.Header == nil {
			spec.Header = map[string]secret.String{}
		}
		spec.Header[name] = value
	}
	// The client's own Cache-Control applies to this cache and, if forwarded, to the caches behind it.
	covers.Control = sharing.ParseControl(control).Stricter(sharing.ParseControl(r.Header))
	own := sharing.Control{MaxAge: -1}
	if text := q.Get(api.FileNoCache); text != "" {
		if own.NoCache, err = strconv.ParseBool(text); err != nil {
			return bad("%s must be true or false", api.FileNoCache)
		}
	}
	if text := q.Get(api.FileMaxAge); text != "" {
		if own.MaxAge, err = time.ParseDuration(text); err != nil || own.MaxAge < 0 {
			return bad("%s must be a duration such as 90s, 10m or 0s", api.FileMaxAge)
		}
	}
	covers.Control = covers.Control.Stricter(own)
	if value := covers.Control.Header(); value != "" {
		if spec.Header == nil {
			spec.Header = map[string]secret.String{}
		}
		spec.Header["Cache-Control"] = secret.String(value)
	}
	file := task.File{Tag: q.Get(api.FileTag), Application: q.Get(api.FileApplication)}
	if strings.ContainsFunc(file.Tag+file.Application, unicode.IsControl) {
		// A NUL separates the tag from the digest in the task's name: see identify.
		return bad("%s and %s must not contain control characters", api.FileTag, api.FileApplication)
	}
	file.URL, covers.Signed = f.canonical(u, covers.Ignore)
	return fileRequest{spec: spec, file: file, covers: covers}, nil
}

// forwarded returns the headers that a request forwards to the origin, each joined to one value, and those of them that
// control caches.
func forwarded(h http.Header) (header map[string]secret.String, control http.Header, err error) {
	header, control = map[string]secret.String{}, http.Header{}
	for name, values := range h {
		name, ok := strings.CutPrefix(name, api.ForwardPrefix)
		if !ok || name == "" {
			continue
		}
		if name = textproto.CanonicalMIMEHeaderKey(name); len(header) == forwardMax {
			return nil, nil, fmt.Errorf("more than %d headers to forward", forwardMax)
		}
		if err := sharing.Forwardable(name); err != nil {
			return nil, nil, err
		}
		if name == "Cache-Control" || name == "Pragma" {
			control[name] = values
		}
		between := ", "
		if name == "Cookie" {
			between = "; "
		}
		header[name] = secret.String(strings.Join(values, between))
	}
	return header, control, nil
}

// canonical returns the part of the URL that names the file, and the left-out parameters, which only sign the request.
// It unites only spellings that name one resource at every server (RFC 3986 §6.2.3, RFC 9110 §4.2.3): an empty query is
// none of them, nor is an empty parameter.
func (f *files) canonical(u *url.URL, ignore []string) (name string, signed []string) {
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
		if pair != "" && (matches(own, name) || matches(ignore, name)) {
			signed = append(signed, pair)
			continue
		}
		kept = append(kept, pair)
	}
	c.RawQuery = strings.Join(kept, "&")
	return c.String(), signed
}

// matches reports whether a name matches one of the patterns, in any case of letters. A * at a pattern's end matches
// any rest.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if prefix, open := strings.CutSuffix(p, "*"); open && len(name) >= len(prefix) &&
			strings.EqualFold(name[:len(prefix)], prefix) || strings.EqualFold(p, name) {
			return true
		}
	}
	return false
}

// serve writes the file, or the range that the client requested.
func (f *files) serve(w http.ResponseWriter, r *http.Request, content *held, pull *telemetry.Pull, started time.Time) {
	metadata, etag := content.Metadata(), content.version
	window, code := oci.Window{Length: metadata.Length}, http.StatusOK
	h := w.Header()
	if etag != "" {
		h.Set("ETag", etag)
		h.Set("Accept-Ranges", "bytes")
	}
	lastModified(h, content.modified)
	asked := r.Header.Get("Range")
	if f.replaced(pull.Task) {
		asked = "" // the client may hold other bytes, so it gets the whole file
	}
	if etag != "" && asked != "" && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == etag) {
		windows, err := oci.ParseRange(asked, metadata.Length)
		if err != nil {
			pull.Result = telemetry.OK // the client already has the whole file
			h.Set("Content-Range", oci.UnsatisfiedRange(metadata.Length))
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if len(windows) == 1 {
			window, code = windows[0], http.StatusPartialContent
			h.Set("Content-Range", window.ContentRange(metadata.Length))
		}
	}
	describe(h, metadata.MediaType)
	h.Set("Content-Length", strconv.FormatInt(window.Length, 10))
	cached := content.Cached()
	var (
		sent  int64
		err   error
		small []byte // the whole answer; its last bytes can be missing if err is not nil
	)
	switch {
	case cached:
		h.Set(api.HeaderCached, "true")
	case content.last == nil && metadata.Length <= smallMax:
		// The file is one piece, so no byte could leave earlier.
		if small, err = readSmall(r.Context(), content.Content, window); err == nil && content.Complete() {
			tellSources(h, content.Sources())
		}
	}
	w.WriteHeader(code)
	write := func(offset, length int64) {
		if length <= 0 {
			return
		}
		reader := content.NewReader(r.Context(), offset, length)
		defer reader.Close()
		var n int64
		n, err = reader.WriteTo(&firstWrite{ResponseWriter: w, since: started, took: &pull.FirstByte})
		sent += n
	}
	open := window.Length // bytes that need no further comparison
	if content.last != nil {
		open = min(open, max(0, content.tail.Offset-window.Offset))
	}
	switch {
	case small == nil:
		write(window.Offset, open)
	case len(small) > 0:
		n, failed := (&firstWrite{ResponseWriter: w, since: started, took: &pull.FirstByte}).Write(small)
		sent, err = int64(n), cmp.Or(failed, err)
	}
	if err == nil && open < window.Length {
		if err = content.last(r.Context()); err == nil {
			write(window.Offset+open, window.Length-open)
		}
	}
	pull.Bytes = f.pulls.split(sent, content.Sources(), cached)
	switch {
	case err == nil:
		pull.Result = telemetry.OK
	case r.Context().Err() != nil, left(err):
		pull.Result = telemetry.Canceled
	default:
		// The body ends short: net/http closes the connection, and the client requests the rest.
		pull.Result, pull.Err = telemetry.Failed, err
		if content.broke != nil {
			content.broke()
		}
	}
}

// smallMax bounds the files that the daemon reads before it begins to answer, in bytes. No piece is smaller.
const smallMax = api.InlineMax

// readSmall returns the bytes of a window; after an error, those before it.
func readSmall(ctx context.Context, content *peer.Content, w oci.Window) ([]byte, error) {
	b := make([]byte, w.Length)
	reader := content.NewReader(ctx, w.Offset, w.Length)
	defer reader.Close()
	n, err := io.ReadFull(reader, b)
	return b[:n], err
}

// tellSources tells the client where all bytes of a complete download came from, so that it need not ask. The engine
// counts the bytes of a piece a moment after it stores the piece: then the client has to ask.
func tellSources(h http.Header, s api.Sources) {
	if s.Total() == 0 {
		return
	}
	if text, err := json.Marshal(s); err == nil {
		h.Set(api.HeaderSources, string(text))
	}
}

// fileError turns an error into the response to the client, and sets the result of the pull.
func fileError(ctx context.Context, pull *telemetry.Pull, err error) *api.FileError {
	e := httporigin.FileError(err)
	pull.Result, pull.Err = telemetry.Failed, err
	var host *httporigin.HostError
	switch {
	case ctx.Err() != nil:
		pull.Result = telemetry.Canceled
	case e.Kind == api.FileRefused && e.Status < http.StatusInternalServerError:
		pull.Result = telemetry.Refused
	case e.Untrusted:
		e.Message += "; the node's operator can name its authority in files.ca"
	case errors.As(err, &host):
		e.Message += "; the node's operator can add it to files.allowHosts"
	case e.Kind == api.FileForbidden:
		e.Message += "; the node's operator can allow it with files.allowAddresses"
	}
	return e
}

func writeError(w http.ResponseWriter, code int, e *api.FileError) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(e) // the client is gone if this fails
}

// firstWrite records when the first byte is written.
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
