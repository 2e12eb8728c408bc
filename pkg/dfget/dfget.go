// Package dfget downloads files to where people want them, through the dfdaemon of their
// machine, as a peer of its own, or directly.
//
// A file appears under its name only when all of it is there and matches the digest that was
// asked for: until then its bytes stand in FILE.part, from which a broken or interrupted
// download is taken up again, and never with the bytes of another version. Start at
// [Getter.Run].
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
)

// parallelMax is how many URLs are downloaded at once. More share the same line and only
// make the first one finish later.
const parallelMax = 3

// Config is what a [Getter] works with.
type Config struct {
	// URLs are absolute, http or https.
	URLs     []string
	Settings config.Dfget
	// Stdout takes the content for the output "-", Stderr the progress. Nil discards.
	Stdout, Stderr io.Writer
	// Terminal says that Stderr is a terminal, on which bars can be drawn.
	Terminal bool
	// Environ is as [os.Environ] returns it; NETRC and HOME are looked up in it.
	Environ []string
	// Backoff is the wait before the first retry, each further one being twice as long, up
	// to 10 s. Default 500 ms.
	Backoff time.Duration
	Logger  *slog.Logger
}

// Getter downloads the URLs of one command.
type Getter struct {
	cfg     Config
	limiter *ratelimit.Limiter
	source  fetcher
}

// New prepares the downloads and starts nothing.
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

// job is one URL on its way to one target.
type job struct {
	url    *url.URL
	auth   secret.String
	output string // a path, or "-"
	meter  *meter
	told   bool // why it is not shared
}

// Run downloads everything. Each URL is tried whatever becomes of the others; the error tells
// of all that failed, and [ExitCode] of it is the first one's. Cancelling ctx keeps what is
// there for the next time.
func (g *Getter) Run(ctx context.Context) error {
	jobs, err := g.jobs()
	if err != nil {
		return &Error{Code: Usage, Err: err}
	}
	var own *ownDaemon
	switch {
	case g.cfg.Settings.Direct:
		if g.source, err = newDirect(g.cfg); err != nil {
			return &Error{Code: Failed, Err: err}
		}
	case len(g.cfg.Settings.Supernodes) > 0 && !answers(ctx, g.cfg.Settings.Daemon):
		own, err = newOwnDaemon(g.cfg, beside(jobs))
		if err != nil {
			return &Error{Code: Failed, Err: fmt.Errorf("no dfdaemon answers at %s, and being a peer failed: %w", g.cfg.Settings.Daemon, err)}
		}
		defer func() {
			if ended := own.end(); ended != nil {
				g.cfg.Logger.Warn("the peer of this download did not end well", "error", ended)
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
		ctx, cancel = context.WithTimeoutCause(ctx, d, &Error{Code: Timeout, Err: fmt.Errorf("not done within %s (--timeout)", d)})
		defer cancel()
	}

	var (
		group    errgroup.Group
		mu       sync.Mutex
		failures []error
	)
	report := newReporter(g.cfg, jobs, g.source)
	done := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() { report.run(ctx, done) })
	group.SetLimit(parallelMax)
	for _, j := range jobs {
		group.Go(func() error {
			j.meter.start()
			err := g.get(ctx, j)
			if own != nil && err == nil {
				if why := own.alone(ctx); why != "" {
					j.meter.note(g.lonely(ctx, j, why))
				}
			}
			j.meter.end(err)
			if err != nil {
				mu.Lock()
				failures = append(failures, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait() // failures has what went wrong
	close(done)
	ticking.Wait()
	if len(failures) == 0 {
		return nil
	}
	return &Error{Code: ExitCode(failures[0]), Err: errors.Join(failures...), told: g.cfg.Settings.Progress == "json"}
}

// lonely tells that nobody but the origin was there, or in the end was there any more.
func (g *Getter) lonely(ctx context.Context, j *job, why string) string {
	if s, ok := g.source.progress(ctx, j, j.meter.state().identity); ok {
		if share, _ := s.peers(); share > 0 {
			return "no supernode answers any more, what was missing came from the origin (" + why + ")"
		}
	}
	if g.cfg.Settings.Cluster.Secret.IsZero() {
		why += "; a cluster with a secret needs --cluster-secret-file"
	}
	return "no supernode took part, the origin was asked directly (" + why + ")"
}

// beside is a directory on the file system that the first file goes to; empty is the one for
// temporary files.
func beside(jobs []*job) string {
	if jobs[0].output == "-" {
		return ""
	}
	return filepath.Dir(jobs[0].output)
}

// jobs works out what to download to where.
func (g *Getter) jobs() ([]*job, error) {
	s := g.cfg.Settings
	if len(g.cfg.URLs) == 0 {
		return nil, errors.New("there is no URL")
	}
	if len(g.cfg.URLs) > 1 && s.Digest != "" {
		return nil, errors.New("one --digest cannot fit several URLs; download them one by one")
	}
	if len(g.cfg.URLs) > 1 && s.Output == "-" {
		return nil, errors.New("several URLs cannot go to standard output; download them one by one, or name a directory with --output")
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
		u, err := url.Parse(text)
		if err != nil {
			return nil, errors.New("not a URL that can be read: write for example https://host/path/file")
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("%s: only http:// and https:// URLs can be downloaded", withoutQuery(u))
		}
		j := &job{}
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
		j.url = u
		if j.output, err = output(s.Output, u, len(g.cfg.URLs) > 1); err != nil {
			return nil, err
		}
		if targets[j.output] {
			return nil, fmt.Errorf("two URLs would both be written to %s; download them one by one with --output", j.output)
		}
		targets[j.output] = true
		j.meter = newMeter(u, j.output)
		out = append(out, j)
	}
	return out, nil
}

// netrc reads the user's file of passwords. Only a file that was asked for must exist.
func (g *Getter) netrc() (netrc, error) {
	file, asked := g.cfg.Settings.Netrc, true
	if file == "none" {
		return nil, nil
	}
	if file == "" {
		asked = false
		var home string
		for _, kv := range g.cfg.Environ {
			k, v, _ := strings.Cut(kv, "=")
			switch k {
			case "NETRC":
				file, asked = v, true
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
		if !asked {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the passwords: %w", err)
	}
	return parseNetrc(string(b)), nil
}

// output is the path that a URL is written to.
func output(wanted string, u *url.URL, several bool) (string, error) {
	if wanted == "-" {
		return "-", nil
	}
	if wanted != "" && !several && !strings.HasSuffix(wanted, "/") {
		if info, err := os.Stat(wanted); err != nil || !info.IsDir() {
			return wanted, nil
		}
	}
	name := path.Base(u.Path)
	if name == "/" || name == "." || name == ".." || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%s names no file; say with --output where to write", withoutQuery(u))
	}
	return filepath.Join(wanted, name), nil
}

// get brings one file, retrying what may get better.
func (g *Getter) get(ctx context.Context, j *job) error {
	t, err := openTarget(j.output, g.cfg.Stdout, j.meter.url, g.cfg.Settings.Digest)
	if err != nil {
		return &Error{Code: Disk, Err: err}
	}
	defer t.close()
	wait := g.cfg.Backoff
	for failed := 0; ; {
		before := t.offset
		err := g.attempt(ctx, j, t)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return g.interrupted(ctx, j, t)
		}
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Code: Failed, Err: err}
		}
		if t.offset > before {
			failed, wait = 0, g.cfg.Backoff
		}
		failed++
		if !e.again || failed > g.cfg.Settings.Retries {
			if e.Code == WrongDigest || e.Code == Changed {
				t.discard() // whatever came is a part of something else
				return e
			}
			if kept := t.kept(); kept != "" {
				e.Err = fmt.Errorf("%w\n%s", e.Err, kept)
			}
			return e
		}
		reason, _, _ := strings.Cut(e.Error(), "\n") // the rest is advice for when nothing helps
		j.meter.note(fmt.Sprintf("%s; trying again in %s (%d of %d)", reason, wait, failed, g.cfg.Settings.Retries))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return g.interrupted(ctx, j, t)
		}
		wait = min(2*wait, 10*time.Second)
	}
	return t.commit()
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

// bufferSize is the most that is read at a time.
const bufferSize = 256 << 10

// attempt asks once for what is missing and writes what comes.
func (g *Getter) attempt(ctx context.Context, j *job, t *target) error {
	a, err := g.source.fetch(ctx, j, t.offset, t.identity)
	if err != nil {
		return err
	}
	defer a.body.Close()

	switch {
	case t.offset == 0:
	case a.identity == "" || t.identity == "":
		// Nothing tells whether what is here is the beginning of what comes now.
		if t.part == "" {
			return &Error{Code: Unreachable, Err: fmt.Errorf("%s broke off, and its origin gives no version by which the rest could be asked for; start again, or write to a file", j.meter.url)}
		}
		j.meter.note("its origin gives no version by which the rest could be asked for: starting over")
		if err := t.restart(); err != nil {
			return &Error{Code: Disk, Err: err}
		}
	case a.identity != t.identity:
		if t.ours {
			t.discard()
			return &Error{Code: Changed, Err: fmt.Errorf("%s changed at its origin during the download; what was there is of no use any more: start again", j.meter.url)}
		}
		j.meter.note("the file has changed since " + t.part + " was kept: starting over")
		if err := t.restart(); err != nil {
			return &Error{Code: Disk, Err: err}
		}
	}
	if err := t.begin(a.identity); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	if a.unshared != "" && !j.told {
		j.told = true
		j.meter.note("straight from the origin: " + a.unshared)
	}
	j.meter.begin(a, t.offset)
	if skip := t.offset - a.offset; skip > 0 { // no ranges there: what we have comes again
		if _, err := io.CopyN(io.Discard, a.body, skip); err != nil {
			return broken(j, err)
		}
	} else if skip < 0 {
		return &Error{Code: Failed, Err: fmt.Errorf("%s: asked for byte %d and got byte %d", j.meter.url, t.offset, a.offset)}
	}

	buf := make([]byte, bufferSize)
	for {
		n, readErr := a.body.Read(buf[:min(bufferSize, g.limiter.Quantum())])
		if err := g.limiter.Wait(ctx, n); err != nil {
			return err
		}
		if err := t.write(buf[:n]); err != nil {
			return &Error{Code: Disk, Err: err}
		}
		j.meter.add(n)
		if readErr != nil {
			if errors.Is(readErr, io.EOF) && (a.length < 0 || t.offset == a.length) {
				return nil
			}
			return broken(j, readErr)
		}
	}
}

func broken(j *job, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &Error{Code: Unreachable, again: true, Err: fmt.Errorf("%s broke off: %w", j.meter.url, err)}
}

// fetcher brings content from somewhere.
type fetcher interface {
	// fetch asks for the content from offset on. Where the content is another one than
	// identity names, or ranges are not possible, the answer begins at 0.
	fetch(ctx context.Context, j *job, offset int64, identity string) (*answer, error)
	// progress tells where the bytes of a download came from so far; ok is false where
	// nobody knows.
	progress(ctx context.Context, j *job, identity string) (s shares, ok bool)
	// close gives back idle connections.
	close()
}

// answer is content that has begun to come.
type answer struct {
	body     io.ReadCloser
	offset   int64 // of the body's first byte
	length   int64 // of the whole, −1 where it is not known
	identity string
	cached   bool
	// unshared says why the content comes straight from its origin, empty where it is shared.
	unshared string
}

// basic is the value of an Authorization header (RFC 7617).
func basic(user string, password secret.String) secret.String {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password.Reveal())
	return secret.String(r.Header.Get("Authorization"))
}
