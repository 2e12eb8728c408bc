package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer"
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
	// holdAfter is how long a download stays known after a client was served.
	holdAfter = 2 * time.Second
	// asksMax is how often a file that changes between the question and the download, or that is not
	// proved the same, is asked about, before it comes straight from the origin.
	asksMax = 3
)

// files gives dfget its files (api.PathFiles). It is a plain handler, because gin
// answers for a handler that said nothing. What may be shared with whom [sharing.Decide] says; this
// acts on it.
type files struct {
	// probe asks the origin what it gives to these headers; that it gives it at all is the
	// client's right to what the node may have cached.
	probe func(ctx context.Context, spec task.Spec) (httporigin.Info, sharing.Answer, error)
	// window brings a range of the file from the origin, with the client's own headers.
	window func(ctx context.Context, spec task.Spec, w sharing.Window) ([]byte, error)
	open   func(ctx context.Context, spec task.Spec) (*peer.Content, error)
	// direct opens the file at its origin for one client, past the store.
	direct func(ctx context.Context, spec task.Spec, offset int64) (*source.Response, error)
	// drop deletes what the store has of a task.
	drop func(id task.ID) error
	// replaced reports whether clients may hold other bytes of a task; see [peer.Engine.Replaced].
	replaced func(id task.ID) bool
	now      func() time.Time
	// key hashes what is secret in a name; see [identity.Identity.NamesKey].
	key     []byte
	flights flights
	proofs  proofs
	pulls   *pulls
	// settings in force; they change while requests run.
	settings atomic.Pointer[config.DaemonFiles]
}

func newFiles(n *node.Node, p *pulls) *files {
	f := &files{
		probe: n.Origins.Files.Examine, window: n.Origins.Files.Window, open: n.Engine.Open,
		direct:   n.Engine.Passthrough,
		drop:     n.Engine.Drop,
		replaced: n.Engine.Replaced, now: time.Now, key: []byte(n.Identity.NamesKey().Reveal()), pulls: p,
	}
	if len(f.key) == 0 {
		// Nobody else may guess a credential by a name: then nobody else finds the name.
		f.key = []byte(rand.Text())
	}
	return f
}

func refuse(kind api.FileErrorKind, format string, args ...any) *api.FileError {
	return &api.FileError{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		tellRefusal(w, http.StatusMethodNotAllowed,
			refuse(api.FileBadRequest, "files are asked for by GET, not %s", r.Method))
		return
	}
	started := f.now()
	q, bad := f.request(r)
	if bad != nil {
		tellRefusal(w, bad.Code(), bad)
		return
	}
	told := telemetry.Pull{Kind: task.Plain, Name: secret.PrintableURLText(q.file.URL)}
	defer func() {
		told.Total = f.now().Sub(started)
		f.pulls.finished(told)
	}()
	last := started
	stage := func(name string) {
		now := f.now()
		told.Stages = append(told.Stages, telemetry.Stage{Name: name, Took: now.Sub(last)})
		last = now
	}
	held, why, err := f.find(r.Context(), q, &told, stage)
	if err != nil {
		e := failed(r.Context(), &told, err)
		tellRefusal(w, e.Code(), e)
		return
	}
	opened := f.now()
	if held == nil {
		f.straight(w, r, q, why, &told, started)
		stage("body")
		return
	}
	// Let go a moment later: a client that has just got everything asks where it came from,
	// and a download that nobody holds is forgotten.
	defer time.AfterFunc(holdAfter, held.release)
	f.serve(w, r, held, &told, started)
	first := opened
	if told.FirstByte > 0 {
		first = started.Add(told.FirstByte)
		told.Stages = append(told.Stages, telemetry.Stage{Name: "first byte", Took: first.Sub(opened)})
	}
	told.Stages = append(told.Stages, telemetry.Stage{Name: "body", Took: f.now().Sub(first)})
}

// held is content that is open for one client.
type held struct {
	*peer.Content
	// version is the ETag of the answer, empty where nobody can name the version.
	version string
	// modified is when the origin modified the file, zero if it does not say.
	modified time.Time
	release  func()
	broke    func() // tells of a body that ended short; nil where nobody cares
	// tail is to be proved the same by last before it is sent; without last nothing is.
	tail sharing.Window
	last func(context.Context) error
}

// find asks the origin about the file and opens it among those that may share it. Without a held
// content the file comes straight from the origin, because of why.
func (f *files) find(ctx context.Context, q question, told *telemetry.Pull,
	stage func(string)) (h *held, why string, err error) {
	var changed error // what the last download ended with
	was := ""         // and the version that it was begun for
	for range asksMax {
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
		d := sharing.Decide(q.covers, answer, f.key, f.now())
		var p *proof
		switch d.Share {
		case sharing.Direct:
			return nil, d.Reason, nil
		case sharing.Flight:
			h, err = f.join(ctx, q, d)
		default:
			spec := q.spec // how the origin is asked for all that share it
			spec.Validator, spec.Length = info.Validator, max(0, info.Length)
			p = &proof{spec: spec}
			if d.Share == sharing.Public {
				spec, d = f.anonymous(ctx, q, spec, info, answer.Place, d)
				p.lenient = d.Share != sharing.Public
			}
			told.Task = identify(q.file, info, d.Cover, spec.Digest).ID()
			spec.ID, spec.Share = told.Task, string(d.Share)
			p.note = string(spec.ID) + q.covers.Fingerprint(f.key)
			d.Prove = d.Prove && !f.proofs.has(p.note, f.now())
			if d.Prove && !p.lenient && f.proofs.has(unproven+p.note, f.now()) {
				q.covers.Unproven = true
				continue
			}
			if d.Prove && !f.pulls.embedded() {
				// Before the download begins: an origin that can prove nothing is not asked for a body in vain.
				if err := f.beginProof(ctx, p); err != nil && !p.lenient {
					if ctx.Err() == nil {
						f.proofs.add(unproven+p.note, f.now())
					}
					q.covers.Unproven = true
					continue
				}
			}
			h, err = f.hold(ctx, spec)
		}
		stage("first facts")
		var words *api.Failure
		switch {
		case err == nil && !d.Prove:
			h.modified = info.Modified
			return h, "", nil
		case err == nil:
			h.modified = info.Modified
		case ctx.Err() == nil && errors.As(err, &words) && words.Unshared:
			return nil, words.Message, nil
		case ctx.Err() == nil && errors.As(err, &words) && words.Changed:
			changed, was = err, info.Validator
			continue
		default:
			return nil, "", err
		}
		if f.pulls.embedded() && !p.lenient && h.Own() {
			err = nil // nobody else's request brought any of it
			f.proofs.add(p.note, f.now())
		} else {
			err = f.prove(ctx, p, h)
		}
		stage("proving it the same")
		if err == nil || p.lenient && ctx.Err() == nil && !errors.Is(err, errOtherBytes) {
			return h, "", nil
		}
		h.release()
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		f.proofs.add(unproven+p.note, f.now())
		q.covers.Unproven = true
	}
	if changed != nil {
		return nil, "", changed
	}
	return nil, "the origin does not prove it the same for this client and others", nil
}

// hold opens a file that has a name.
func (f *files) hold(ctx context.Context, spec task.Spec) (*held, error) {
	content, err := f.open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &held{Content: content, version: `"` + string(spec.ID) + `"`, release: func() { content.Close() }}, nil
}

// anonymous turns a file that its origin calls public into everybody's, where the origin gives the
// same version to a request without credentials: what is brought with none is no user's. Where it says
// that it gives ranges, the client's own bytes are compared all the same.
func (f *files) anonymous(ctx context.Context, q question, spec task.Spec, info httporigin.Info, place string,
	d sharing.Decision) (task.Spec, sharing.Decision) {
	bare := spec
	bare.Authorization = ""
	said, answer, err := f.probe(ctx, bare)
	if err != nil || said.Validator != info.Validator || said.Length != info.Length || answer.Place != place {
		return spec, d
	}
	open := sharing.Decide(q.covers.Anonymous(), answer, f.key, f.now())
	if open.Share != sharing.Equal {
		return spec, d
	}
	open.Prove = info.Ranges
	return bare, open
}

// proof compares what the origin gives to one client's headers with what others' may have brought.
type proof struct {
	spec task.Spec // the client's own
	// lenient takes the origin's word (public) where it gives no ranges, since what it is compared with was
	// brought in nobody's name.
	lenient bool
	first   sharing.Window
	begin   []byte // the origin's bytes of the first window
	note    string // names task and request among [proofs]
}

// Bounds on what is remembered of proofs.
const (
	proofsMax = 4096
	// proofLife is how long one counts: after that the content may have been evicted, and brought
	// in another's name.
	proofLife = 10 * time.Minute
)

// unproven begins the note of a proof that was tried and failed.
const unproven = "failed "

// proofs are those that were made or failed, so that each request makes its own once in a while only.
type proofs struct {
	// mu is held to look one up or to add one.
	mu   sync.Mutex
	made map[string]time.Time
}

func (p *proofs) has(note string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.made[note]
	return ok && now.Sub(at) < proofLife
}

func (p *proofs) add(note string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil || len(p.made) >= proofsMax {
		p.made = map[string]time.Time{}
	}
	p.made[note] = now
}

// beginProof brings the beginning of the file from the origin.
func (f *files) beginProof(ctx context.Context, p *proof) (err error) {
	if p.spec.Length <= 0 {
		return errors.New("its length is not told beforehand")
	}
	p.first = sharing.Windows(p.spec.Length, false, mathrand.Int64N)[0]
	p.begin, err = f.window(ctx, p.spec, p.first)
	return err
}

// prove ends a proof that was begun, and notes it. Nil says that all windows are alike, but for the
// tail of a large file that still comes: then h says so.
func (f *files) prove(ctx context.Context, p *proof, h *held) error {
	if p.begin == nil {
		if err := f.beginProof(ctx, p); err != nil {
			return err
		}
	}
	if h.Metadata().Length != p.spec.Length {
		return errors.New("its length is another one")
	}
	complete := h.Complete()
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range sharing.Windows(p.spec.Length, complete, mathrand.Int64N) {
		g.Go(func() error { return f.compare(ctx, p, h.Content, w) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	tail, later := sharing.Tail(p.spec.Length, complete)
	if !later {
		f.proofs.add(p.note, f.now())
		return nil
	}
	h.tail, h.last = tail, func(ctx context.Context) error {
		err := f.compare(ctx, p, h.Content, tail)
		switch {
		case err == nil:
			f.proofs.add(p.note, f.now())
		case p.lenient && ctx.Err() == nil && !errors.Is(err, errOtherBytes):
			return nil
		case ctx.Err() == nil:
			f.proofs.add(unproven+p.note, f.now())
		}
		return err
	}
	return nil
}

// compare brings a window of the file from the origin and compares it with what others brought.
func (f *files) compare(ctx context.Context, p *proof, content *peer.Content, w sharing.Window) (err error) {
	theirs := p.begin
	if w != p.first {
		if theirs, err = f.window(ctx, p.spec, w); err != nil {
			return err
		}
	}
	ours := make([]byte, w.Length)
	reader := content.NewReader(ctx, w.Offset, w.Length)
	defer reader.Close()
	if _, err := io.ReadFull(reader, ours); err != nil {
		return err
	}
	if !bytes.Equal(theirs, ours) {
		return errOtherBytes
	}
	return nil
}

// errOtherBytes tells of an origin whose strong ETag is none.
var errOtherBytes = errors.New("it has the same strong ETag and other bytes for other users")

// identify names the version of a file that its origin has now, for all that share it.
func identify(file task.File, info httporigin.Info, cover, digest string) task.File {
	file.Validator, file.Length, file.Cover = info.Validator, info.Length, cover
	if digest != "" {
		// Whoever asks for a digest has a task of his own: a wrong one revokes that task
		// and nobody else's.
		file.Tag += "\x00" + digest
	}
	return file
}

// question is what a client asks for.
type question struct {
	spec   task.Spec
	file   task.File // without version
	covers sharing.Request
}

// request reads what is asked for.
func (f *files) request(r *http.Request) (question, *api.FileError) {
	bad := func(format string, args ...any) (question, *api.FileError) {
		return question{}, refuse(api.FileBadRequest, format, args...)
	}
	q := r.URL.Query()
	text := q.Get(api.FileURL)
	if text == "" || len(text) > urlMax {
		return bad("the URL is missing or longer than %d bytes", urlMax)
	}
	u, err := httporigin.ParseURL(text)
	if err != nil {
		return bad("%v", err)
	}
	if u.User != nil {
		return bad("a user does not belong into the URL: send it as %sAuthorization", api.ForwardPrefix)
	}
	u.Fragment = ""
	if !hostmatch.Match(f.settings.Load().AllowHosts, u.Hostname()) {
		return question{}, refuse(api.FileForbidden,
			"files from %s are not allowed on this node; its operator can add the host to files.allowHosts",
			u.Hostname())
	}
	spec := task.Spec{Kind: task.Plain, URL: u.String(), Digest: q.Get(api.FileDigest)}
	if spec.Digest != "" {
		if _, err := task.ParseID(spec.Digest); err != nil || strings.HasPrefix(spec.Digest, "file:") {
			return bad("the digest is none of sha256: or sha512: and hex digits")
		}
	}
	covers := sharing.Request{Header: map[string]secret.String{}, Ignore: q[api.FileIgnore]}
	control := http.Header{}
	for name, values := range r.Header {
		name, ok := strings.CutPrefix(name, api.ForwardPrefix)
		if !ok || name == "" {
			continue
		}
		if name = textproto.CanonicalMIMEHeaderKey(name); len(covers.Header) == forwardMax {
			return bad("more than %d headers to forward", forwardMax)
		}
		if err := sharing.Forwardable(name); err != nil {
			return bad("%v", err)
		}
		if name == "Cache-Control" || name == "Pragma" {
			control[name] = values
		}
		between := ", "
		if name == "Cookie" {
			between = "; "
		}
		value := secret.String(strings.Join(values, between))
		if covers.Header[name] = value; name == "Authorization" {
			spec.Authorization = value
			continue
		}
		if spec.Header == nil {
			spec.Header = map[string]secret.String{}
		}
		spec.Header[name] = value
	}
	// What the client says to this cache counts as what it says to those further on.
	covers.Control = sharing.ParseControl(control).Stricter(sharing.ParseControl(r.Header))
	own := sharing.Control{MaxAge: -1}
	if text := q.Get(api.FileNoCache); text != "" {
		if own.NoCache, err = strconv.ParseBool(text); err != nil {
			return bad("%s is true or false", api.FileNoCache)
		}
	}
	if text := q.Get(api.FileMaxAge); text != "" {
		if own.MaxAge, err = time.ParseDuration(text); err != nil || own.MaxAge < 0 {
			return bad("%s is a duration such as 90s, 10m or 0s", api.FileMaxAge)
		}
	}
	covers.Control = covers.Control.Stricter(own)
	if say := covers.Control.Header(); say != "" {
		if spec.Header == nil {
			spec.Header = map[string]secret.String{}
		}
		spec.Header["Cache-Control"] = secret.String(say)
	}
	file := task.File{Tag: q.Get(api.FileTag), Application: q.Get(api.FileApplication)}
	if strings.ContainsFunc(file.Tag+file.Application, unicode.IsControl) {
		// A NUL parts the tag from the digest in the task's name: see identify.
		return bad("%s and %s hold no control characters", api.FileTag, api.FileApplication)
	}
	file.URL, covers.Signed = f.canonical(u, covers.Ignore)
	return question{spec: spec, file: file, covers: covers}, nil
}

// canonical is the URL as far as it names the file, and the parameters that it leaves out because they
// only sign.
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
		switch {
		case pair == "":
		case matches(own, name), matches(ignore, name):
			signed = append(signed, pair)
		default:
			kept = append(kept, pair)
		}
	}
	c.RawQuery, c.ForceQuery = strings.Join(kept, "&"), false
	return c.String(), signed
}

// matches reports whether a name is one of the patterns; a * at the end stands for any rest.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if prefix, open := strings.CutSuffix(p, "*"); open && len(name) >= len(prefix) &&
			strings.EqualFold(name[:len(prefix)], prefix) || strings.EqualFold(p, name) {
			return true
		}
	}
	return false
}

// serve writes what the client lacks of the content.
func (f *files) serve(w http.ResponseWriter, r *http.Request, content *held, told *telemetry.Pull, started time.Time) {
	facts, etag := content.Metadata(), content.version
	window, code := oci.Window{Length: facts.Length}, http.StatusOK
	h := w.Header()
	if etag != "" {
		h.Set("ETag", etag)
		h.Set("Accept-Ranges", "bytes")
	}
	lastModified(h, content.modified)
	asked := r.Header.Get("Range")
	if f.replaced(told.Task) {
		asked = "" // what the client has may be other bytes: it gets the whole, and begins again
	}
	if etag != "" && asked != "" && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == etag) {
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
	describe(h, facts.MediaType)
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
	give := func(offset, length int64) {
		if length <= 0 {
			return
		}
		reader := content.NewReader(r.Context(), offset, length)
		defer reader.Close()
		var n int64
		n, err = reader.WriteTo(&firstWrite{ResponseWriter: w, since: started, took: &told.FirstByte})
		sent += n
	}
	open := window.Length // of these bytes nothing is left to prove
	if content.last != nil {
		open = min(open, max(0, content.tail.Offset-window.Offset))
	}
	give(window.Offset, open)
	if err == nil && open < window.Length {
		if err = content.last(r.Context()); err == nil {
			give(window.Offset+open, window.Length-open)
		}
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
		if content.broke != nil {
			content.broke()
		}
	}
}

// failed turns what went wrong into words for the client, and for the line of the log.
func failed(ctx context.Context, told *telemetry.Pull, err error) *api.FileError {
	e := httporigin.FileError(err)
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

func tellRefusal(w http.ResponseWriter, code int, e *api.FileError) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(e) // a client that is gone needs no error
}

// firstWrite notes when the first byte leaves.
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
