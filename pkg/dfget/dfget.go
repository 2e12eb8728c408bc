// Package dfget downloads files through the dfdaemon of this machine, as a peer of its own, or directly from
// their origin.
//
// A file appears under its name only when it is complete and matches the requested digest. Until then its bytes
// are in FILE.part, from which an interrupted download resumes; it never mixes the bytes of two versions. Start
// at [Getter.Run].
package dfget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source/httporigin"
)

// Config of a [Getter].
type Config struct {
	// URLs are absolute, http or https.
	URLs []string
	// Settings are dfget's flags. [config.NewForm] fills in the defaults.
	Settings config.Dfget
	// Stdout receives the file for the output "-", Stderr the progress. Nil discards.
	Stdout, Stderr io.Writer
	// Terminal is true if Stderr is a terminal, on which progress bars can be drawn.
	Terminal bool
	// Environ is as [os.Environ] returns it; only NETRC and HOME are read.
	Environ []string
	// Backoff is the wait before the first retry. Each further one is twice as long, up to 10 s. Default 500 ms.
	Backoff time.Duration
	// Logger receives warnings. Default: none.
	Logger *slog.Logger
}

// Getter downloads the URLs of one command.
type Getter struct {
	cfg     Config
	limiter *ratelimit.Limiter
	source  fetcher
	silent  silentOrigins
}

// New prepares the downloads and starts none.
func New(cfg Config) *Getter {
	if cfg.Stdout == nil {
		cfg.Stdout = io.Discard
	}
	if cfg.Stderr == nil {
		cfg.Stderr = io.Discard
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = 500 * time.Millisecond
	}
	return &Getter{cfg: cfg, limiter: ratelimit.New(int64(cfg.Settings.LimitRate))}
}

// job is the download of one URL to one target.
type job struct {
	url    *url.URL
	auth   secret.String
	output string // a path, or "-"
	meter  *meter
	noted  bool   // the reason why the file is not shared was reported
	large  func() // is called when the file turns out to be no small one
	held   string // the note on a new try, until its bytes show that the try is one
}

// Run downloads all URLs, and tries each of them even if others fail. The error holds all failures,
// which Joined of pkg/cli lists; [ExitCode] of it is the first one's. Cancelling ctx keeps the bytes that came, so that
// the next Run resumes.
func (g *Getter) Run(ctx context.Context) error {
	jobs, err := g.jobs()
	if err != nil {
		return &Error{Code: Usage, Err: err}
	}
	var own *ownDaemon
	sweep(cacheParent(jobs), g.cfg.Logger)
	switch {
	case g.cfg.Settings.Direct:
		if g.source, err = newDirect(g.cfg); err != nil {
			return &Error{Code: Failed, Err: err}
		}
	case len(g.cfg.Settings.Supernodes) > 0 && !listens(ctx, g.cfg.Settings.Daemon):
		own, err = newOwnDaemon(ctx, g.cfg, cacheParent(jobs))
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return &Error{Code: Failed, Err: fmt.Errorf(
				"no dfdaemon listens at %s, and starting a peer in this process failed: %w", g.cfg.Settings.Daemon, err)}
		}
		defer func() {
			if err := own.close(); err != nil {
				g.cfg.Logger.Warn("the peer of this download ended with an error", "error", err)
			}
		}()
		g.cfg.Settings.Daemon = own.api()
		g.source = newDaemon(g.cfg)
	default:
		g.source = newDaemon(g.cfg)
	}
	defer g.source.close()
	if d := g.cfg.Settings.Timeout; d > 0 {
		var cancel context.CancelFunc
		cause := &Error{Code: Timeout, Err: fmt.Errorf("not done within %s (--timeout)", d)}
		ctx, cancel = context.WithTimeoutCause(ctx, d, cause)
		defer cancel()
	}
	failures := g.download(ctx, jobs, own)
	if len(failures) == 0 {
		return nil
	}
	code := ExitCode(failures[0])
	if n := len(jobs); n > 1 {
		failures = append(failures, fmt.Errorf("%d of %d files failed", len(failures), n))
	}
	return &Error{Code: code, Err: errors.Join(failures...), reported: g.cfg.Settings.Progress == "json"}
}

// download runs all jobs and shows their progress. own is the peer in this process, or nil.
func (g *Getter) download(ctx context.Context, jobs []*job, own *ownDaemon) (failures []error) {
	var (
		group errgroup.Group
		mu    sync.Mutex
	)
	crew := newCrew()
	report := newReporter(g.cfg, jobs, g.source)
	done := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() { report.run(ctx, done) })
	for _, j := range jobs {
		j.large = crew.large
		crew.enter()
		group.Go(func() error {
			j.meter.start()
			err := g.get(ctx, j)
			if own != nil && err == nil {
				if reason := own.noSupernode(ctx); reason != "" {
					j.meter.note(g.noSupernodeNote(ctx, j, reason))
				}
			}
			j.meter.end(err)
			crew.leave(err == nil && j.meter.state().done <= smallMax)
			if err != nil {
				mu.Lock()
				failures = append(failures, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in failures
	close(done)
	ticking.Wait()
	return failures
}

// noSupernodeNote says for people that the supernodes did not take part, or stopped answering.
func (g *Getter) noSupernodeNote(ctx context.Context, j *job, reason string) string {
	if s, ok := g.source.progress(ctx, j, j.meter.state().identity); ok {
		if share, _ := s.peers(); share > 0 {
			return "no supernode answers any more, the rest came from the origin (" + reason + ")"
		}
	}
	if g.cfg.Settings.Cluster.Secret.IsZero() {
		reason += "; a cluster with a secret needs --cluster-secret-file"
	}
	return "no supernode took part, the file came directly from the origin (" + reason + ")"
}

// cacheParent returns the directory of the first target, so that the cache is on the same file system; empty
// means the directory for temporary files.
func cacheParent(jobs []*job) string {
	if jobs[0].output == "-" {
		return ""
	}
	return filepath.Dir(jobs[0].output)
}

// jobs checks the settings and returns one job per URL.
func (g *Getter) jobs() ([]*job, error) {
	s := g.cfg.Settings
	if len(g.cfg.URLs) == 0 {
		return nil, errors.New("there is no URL")
	}
	if s.Output == "/dev/stdout" {
		g.cfg.Settings.Output, s.Output = "-", "-"
	}
	if len(g.cfg.URLs) > 1 && s.Digest != "" {
		return nil, errors.New("one --digest cannot fit several URLs; download them one by one")
	}
	if len(g.cfg.URLs) > 1 && s.Output == "-" {
		return nil, errors.New("several URLs cannot go to standard output; download them one by one, " +
			"or name a directory with --output")
	}
	for _, h := range s.Header {
		if httporigin.OwnHeader(h.Name) {
			return nil, fmt.Errorf("-H %s: dfget sets this header itself, and it downloads whole files only; omit it",
				h.Name)
		}
	}
	machines, err := g.netrc()
	if err != nil {
		return nil, err
	}
	var password secret.String
	if s.PasswordFile != "" {
		if password, err = config.ReadSecretFile(s.PasswordFile); err != nil {
			return nil, fmt.Errorf("reading --password-file: %w", err)
		}
	}
	var out []*job
	targets := map[string]bool{}
	for _, text := range g.cfg.URLs {
		j, err := g.job(text, machines, password)
		if err != nil {
			return nil, err
		}
		if targets[j.output] {
			return nil, fmt.Errorf("two URLs have the same target %s; download them one by one with --output", j.output)
		}
		targets[j.output] = true
		out = append(out, j)
	}
	return out, nil
}

// job parses one URL and finds its credentials and its target.
func (g *Getter) job(text string, machines netrc, password secret.String) (*job, error) {
	s := g.cfg.Settings
	u, err := httporigin.ParseURL(text)
	if err != nil {
		return nil, err
	}
	j := &job{url: u}
	switch {
	case u.User != nil:
		word, _ := u.User.Password()
		j.auth = basic(u.User.Username(), secret.String(word))
	case s.User != "":
		j.auth = basic(s.User, password)
	default:
		if m, ok := machines.find(u.Hostname()); ok {
			j.auth = basic(m.login, m.password)
		}
	}
	u.User, u.Fragment = nil, ""
	if j.output, err = output(s.Output, u, len(g.cfg.URLs) > 1); err != nil {
		return nil, err
	}
	j.meter = newMeter(u, j.output)
	return j, nil
}

// netrc reads the user's .netrc. The file must exist only if a setting names it.
func (g *Getter) netrc() (netrc, error) {
	file, named := g.cfg.Settings.Netrc, true
	if file == "none" {
		return nil, nil
	}
	if file == "" {
		named = false
		var home string
		for _, kv := range g.cfg.Environ {
			k, v, _ := strings.Cut(kv, "=")
			switch k {
			case "NETRC":
				file, named = v, true
			case "HOME":
				home = v
			}
		}
		if file == "" && home != "" {
			file = filepath.Join(home, ".netrc")
		}
	}
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		if !named {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the netrc file: %w", err)
	}
	return parseNetrc(string(b)), nil
}

// output returns the path of a URL's target. setting is --output: a file, a directory, "-" or empty.
func output(setting string, u *url.URL, several bool) (string, error) {
	if setting == "-" {
		return "-", nil
	}
	if setting != "" && !several && !strings.HasSuffix(setting, "/") {
		if info, err := os.Stat(setting); err != nil || !info.IsDir() {
			return setting, nil
		}
	}
	name := path.Base(u.Path)
	if name == "/" || name == "." || name == ".." || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%s names no file; name a target with --output", secret.PrintableURL(u))
	}
	return filepath.Join(setting, name), nil
}

// get downloads one file. It retries temporary errors, unless the origin has just left all tries of another file
// without an answer.
func (g *Getter) get(ctx context.Context, j *job) error {
	t, err := openTarget(j.output, g.cfg.Stdout, j.meter.url, g.cfg.Settings.Digest)
	if err != nil {
		return &Error{Code: Disk, Err: err}
	}
	defer t.close()
	wait := g.cfg.Backoff
	asked := 0 // how often the daemon was asked at once why the last body broke off
	for failed := 0; ; {
		before := t.offset
		err := g.attempt(ctx, j, t)
		if err == nil {
			g.silent.note(j.url, false)
			j.release()
			break
		}
		if ctx.Err() != nil {
			return g.interrupted(ctx, j, t)
		}
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Code: Failed, Err: err}
		}
		if e.Code == WrongDigest || e.Code == Changed {
			j.held = "" // this is the reason why the body broke off
		}
		if t.offset > before {
			failed, wait = 0, g.cfg.Backoff
		}
		if e.broke && asked < digestAsks && g.cfg.Settings.Digest != "" && !g.cfg.Settings.Direct {
			asked, j.held = asked+1, fmt.Sprintf("%s; asking again", e)
			continue
		}
		j.release()
		failed++
		silent := e.silent && t.offset == before
		last := !e.retry || failed > g.cfg.Settings.Retries || silent && g.silent.has(j.url)
		if last || !silent {
			g.silent.note(j.url, silent)
		}
		if last {
			if e.Code == WrongDigest || e.Code == Changed {
				t.discard() // the bytes belong to another version
				return e
			}
			if kept := t.kept(); kept != "" {
				e.Err = fmt.Errorf("%w\n%s", e.Err, kept)
			}
			return e
		}
		reason, _, _ := strings.Cut(e.Error(), "\n") // further lines are advice for the last error
		j.meter.note(fmt.Sprintf("%s; retrying in %s (%d of %d)", reason, wait, failed, g.cfg.Settings.Retries))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return g.interrupted(ctx, j, t)
		}
		wait = min(2*wait, 10*time.Second)
	}
	return t.commit()
}

// digestAsks is how often dfget asks at once again after a body with a digest broke off. A daemon that finds a wrong
// digest can only end the body short. It asks the origin once more, ends that body short as well, and says so when it
// is asked the next time.
const digestAsks = 2

// release reports the note that was held back.
func (j *job) release() {
	if j.held != "" {
		j.meter.note(j.held)
		j.held = ""
	}
}

func (g *Getter) interrupted(ctx context.Context, j *job, t *target) error {
	var e *Error
	if !errors.As(context.Cause(ctx), &e) {
		e = &Error{Code: Interrupted, Err: errors.New("interrupted")}
	}
	kept := t.kept()
	if kept != "" {
		kept = "; " + kept
	}
	return &Error{Code: e.Code, Err: fmt.Errorf("%s: %w%s", j.meter.url, e.Err, kept)}
}

// bufferSize bounds one read, in bytes. A shorter file has a smaller buffer, of at least bufferMin, because many of
// them run at once.
const (
	bufferMin  = 512
	bufferSize = 256 << 10
)

// attempt requests the missing bytes once and writes those that come.
func (g *Getter) attempt(ctx context.Context, j *job, t *target) error {
	a, err := g.source.fetch(ctx, j, t.offset, t.identity)
	if err != nil {
		return err
	}
	defer a.body.Close()
	began := t.offset
	if err := checkVersion(a, j, t); err != nil {
		return err
	}
	t.small = a.length >= 0 && a.length <= bufferSize
	if err := t.begin(a.identity); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	if t.offset == 0 || !a.modified.IsZero() { // the time of a former answer may be of another version
		t.modified = a.modified
	}
	if a.unshared != "" && !j.noted {
		j.noted = true
		j.meter.note("straight from the origin: " + a.unshared)
	}
	j.meter.begin(a, t.offset)
	large := a.length > smallMax
	if large {
		j.large()
	}
	if skip := t.offset - a.offset; skip > 0 { // the source has no ranges and sends our bytes again
		if _, err := io.CopyN(io.Discard, a.body, skip); err != nil {
			return broken(j, err)
		}
	} else if skip < 0 {
		return &Error{Code: Failed, Err: fmt.Errorf("%s: requested byte %d, but the answer begins at byte %d",
			j.meter.url, t.offset, a.offset)}
	}

	size := bufferSize
	if a.length >= 0 {
		size = int(min(bufferSize, max(bufferMin, a.length-t.offset)))
	}
	buf := make([]byte, size)
	for {
		n, readErr := a.body.Read(buf[:min(size, g.limiter.Quantum())])
		if err := g.limiter.Wait(ctx, n); err != nil {
			return err
		}
		if err := t.write(buf[:n]); err != nil {
			return &Error{Code: Disk, Err: err}
		}
		j.meter.add(n)
		if t.offset-began > smallMax {
			j.release() // the download goes on
		}
		if !large && t.offset > smallMax { // its length was unknown
			large = true
			j.large()
		}
		if readErr != nil {
			if errors.Is(readErr, io.EOF) && (a.length < 0 || t.offset == a.length) {
				return nil
			}
			return broken(j, readErr)
		}
	}
}

// checkVersion compares the version of an answer with that of the bytes in the target. If they are not the same
// it empties the target for a new start, or fails.
func checkVersion(a *answer, j *job, t *target) error {
	switch {
	case t.offset == 0 || a.identity != "" && sameVersion(a.identity, t.identity):
		return nil
	case a.identity == "" || t.identity == "":
		// The bytes in the target may belong to another version.
		why := "its origin sends no ETag and no date"
		if a.identity == "" && a.unshared != "" {
			why = "it now comes straight from its origin"
		}
		if t.part == "" {
			return &Error{Code: Unreachable, Err: fmt.Errorf("%s broke off, and %s, so the "+
				"download cannot resume; start again, or write to a file", j.meter.url, why)}
		}
		j.meter.note(why + ", so the download cannot resume: starting over")
	default:
		if t.ours {
			t.discard()
			return &Error{Code: Changed, Err: fmt.Errorf("%s changed at its origin during the download; "+
				"the bytes of the old version are deleted: start again", j.meter.url)}
		}
		j.meter.note(otherVersion(a.identity, t.identity, t.part) + ": starting over")
	}
	if err := t.restart(); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	return nil
}

// sameVersion reports whether two identities name the same version. An answer of the origin does not always have the
// length, and the validator alone names the version.
func sameVersion(a, b string) bool {
	if a == b {
		return true
	}
	aValidator, aLength, ok := parseIdentity(a)
	bValidator, bLength, too := parseIdentity(b)
	return ok && too && aValidator == bValidator && (aLength == 0 || bLength == 0)
}

// otherVersion says for people why bytes of an earlier run do not fit.
func otherVersion(is, was, part string) string {
	_, _, direct := parseIdentity(was)
	_, _, directNow := parseIdentity(is)
	switch {
	case direct && !directNow:
		return part + " is of a direct download, which a dfdaemon cannot resume"
	case directNow && !direct:
		return part + " is of a download through a dfdaemon, which a direct download cannot resume"
	case directNow:
		return "the file has changed since " + part + " was kept"
	}
	return part + " is of another version of the file, or of a request with other headers, tags or digest"
}

func broken(j *job, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &Error{Code: Unreachable, retry: true, broke: true, Err: fmt.Errorf("%s broke off: %w", j.meter.url, err)}
}

// forwarded returns the headers of a job for its origin, by canonical name. An Authorization of -H goes before those of
// --user and .netrc. Other headers that -H repeats are joined (RFC 9110 §5.3, RFC 6265 §4.2.1).
func forwarded(j *job, set []config.Header) (authorization secret.String, header map[string]secret.String) {
	authorization, header = j.auth, map[string]secret.String{}
	for _, h := range set {
		if h.Name == "Authorization" {
			authorization = h.Value
			continue
		}
		between := ", "
		if h.Name == "Cookie" {
			between = "; "
		}
		value := h.Value
		if was, ok := header[h.Name]; ok {
			value = secret.String(was.Reveal() + between + value.Reveal())
		}
		header[h.Name] = value
	}
	return authorization, header
}

// fetcher is a source of files: a dfdaemon, or the origin.
type fetcher interface {
	// fetch requests the file from offset on. The answer begins at 0 if the file is another version than
	// identity, or if ranges are not possible.
	fetch(ctx context.Context, j *job, offset int64, identity string) (*answer, error)
	// progress returns the bytes of a download by source; ok is false if they are unknown.
	progress(ctx context.Context, j *job, identity string) (s shares, ok bool)
	// close closes idle connections.
	close()
}

// answer is a file whose body has begun.
type answer struct {
	body     io.ReadCloser
	offset   int64 // of the body's first byte
	length   int64 // of the whole file, −1 if unknown
	identity string
	cached   bool
	sources  *shares   // of the whole file, nil if they are not known yet
	modified time.Time // Last-Modified of the origin, zero if unknown
	// unshared is the reason why the file comes straight from its origin, empty if it is shared.
	unshared string
}

// basic returns the value of an Authorization header (RFC 7617).
func basic(user string, password secret.String) secret.String {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password.Reveal())
	return secret.String(r.Header.Get("Authorization"))
}
