package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

// flights are the files without a version that are on their way, by what is asked for. A flight is a task
// under a name that is drawn, so that nobody finds it in a cache, and that only this host knows.
type flights struct {
	// mu is held to find or add a flight, never while its origin is asked.
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	id      task.ID
	began   time.Time
	content *peer.Content // of whoever began it; nil until it is open
	riders  int
}

// join opens the file that equal requests brought under way, or begins to bring it. What the store has
// of it is deleted with the last one that reads it.
func (f *files) join(ctx context.Context, q question, d sharing.Decision) (*held, error) {
	file := q.file
	file.Cover = d.Cover
	key := string(identify(file, httporigin.Info{Length: -1}, d.Cover, q.spec.Digest).ID())
	fl := f.flights.board(key, q.covers.Control.MaxAge, f.now())
	spec := q.spec
	spec.ID, spec.Share, spec.Alone = fl.id, string(sharing.Flight), true
	content, err := f.open(ctx, spec)
	leave := func() {
		if f.flights.leave(key, fl) {
			// An error is the store's, which tells of it; what it could not delete has no name.
			_ = f.drop(fl.id)
		}
	}
	if err != nil {
		f.flights.crash(key, fl)
		go leave()
		return nil, err
	}
	f.flights.opened(fl, content)
	return &held{Content: content, broke: func() { f.flights.crash(key, fl) }, release: func() {
		content.Close()
		leave()
	}}, nil
}

// board finds a flight that has not landed and is not older than a client takes (negative: any), or
// adds one.
func (fs *flights) board(key string, maxAge time.Duration, now time.Time) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fl := fs.all[key]
	landed := fl != nil && fl.content != nil && fl.content.Complete()
	if fl == nil || landed || maxAge >= 0 && now.Sub(fl.began) > maxAge {
		fl = &flight{id: drawn(), began: now}
		if fs.all == nil {
			fs.all = map[string]*flight{}
		}
		fs.all[key] = fl
	}
	fl.riders++
	return fl
}

func (fs *flights) opened(fl *flight, c *peer.Content) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fl.content == nil {
		fl.content = c
	}
}

// crash has nobody join a flight any more: what is missing of it could come of another version.
func (fs *flights) crash(key string, fl *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.all[key] == fl {
		delete(fs.all, key)
	}
}

// leave reports whether nobody reads the flight any more; then nobody can join it either.
func (fs *flights) leave(key string, fl *flight) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fl.riders--; fl.riders > 0 {
		return false
	}
	if fs.all[key] == fl {
		delete(fs.all, key)
	}
	return true
}

// drawn is a task's name that nobody else finds.
func drawn() task.ID {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return task.ID("file:" + hex.EncodeToString(b[:]))
}

// straight gives a file from its origin to one client; nothing of it is stored. It comes whole
// whatever the Range: nobody could vouch that a part belongs to what the client has.
func (f *files) straight(w http.ResponseWriter, r *http.Request, q question, why string, told *telemetry.Pull,
	started time.Time) {
	spec := q.spec
	spec.Validator, spec.Length = "", 0
	res, err := f.direct(r.Context(), spec, 0)
	if err != nil {
		e := failed(r.Context(), told, err)
		tellRefusal(w, e.Code(), e)
		return
	}
	defer res.Body.Close()
	h := w.Header()
	describe(h, res.MediaType)
	lastModified(h, res.Modified)
	h.Set("Accept-Ranges", "none")
	h.Set(api.HeaderUnshared, printable(why))
	if res.Length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(res.Length, 10))
	}
	w.WriteHeader(http.StatusOK)
	told.FirstByte = f.now().Sub(started)
	sent, err := copyChecked(w, res.Body, spec.Digest)
	told.Bytes = api.Sources{Origin: sent}
	switch {
	case err == nil:
		told.Result = telemetry.OK
		return
	case r.Context().Err() != nil, left(err):
		told.Result = telemetry.Canceled
	default:
		told.Result, told.Err = telemetry.Failed, err
	}
	// A body without a length would else look whole.
	panic(http.ErrAbortHandler)
}

// copySize is how much of a body is kept back at most while its digest is not known.
const copySize = 256 << 10

// copyChecked copies a body, of which it keeps the last bytes back until all of it matches the digest, if
// there is one.
func copyChecked(w io.Writer, body io.Reader, digest string) (sent int64, err error) {
	if digest == "" {
		return io.Copy(w, body)
	}
	h, err := oci.NewHash(digest)
	if err != nil {
		return 0, err
	}
	var kept []byte
	give := func(b []byte) error {
		n, err := w.Write(b)
		sent += int64(n)
		return err
	}
	next, other := make([]byte, copySize), make([]byte, copySize)
	for {
		n, failure := body.Read(next)
		h.Write(next[:n])
		ended := errors.Is(failure, io.EOF)
		switch {
		case failure != nil && !ended:
			return sent, failure
		case n == 0 && !ended:
			continue
		}
		if ended {
			if err := digestFits(digest, h); err != nil {
				return sent, err
			}
		}
		if err := give(kept); err != nil {
			return sent, err
		}
		if ended {
			return sent, give(next[:n])
		}
		kept, next, other = next[:n], other, next
	}
}

func digestFits(digest string, h hash.Hash) error {
	algorithm, _, _ := strings.Cut(digest, ":")
	if got := algorithm + ":" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("the origin sent a file with digest %s, want %s", got, digest)
	}
	return nil
}

// describe sets what every file is served with.
func describe(h http.Header, mediaType string) {
	if mediaType == "" {
		mediaType = "application/octet-stream"
	}
	h.Set("Content-Type", mediaType)
	h.Set("X-Content-Type-Options", "nosniff")
}

// lastModified sets when the origin modified the file, if it says so. Clients give the time to their copies.
func lastModified(h http.Header, at time.Time) {
	if !at.IsZero() {
		h.Set("Last-Modified", at.UTC().Format(http.TimeFormat))
	}
}

// printable is a text as a header's value may have it.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
	return s[:min(len(s), 300)]
}
