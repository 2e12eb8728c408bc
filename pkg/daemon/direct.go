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

// transfers are the running downloads of files without a version, by request. Equal requests share one
// ([sharing.Flight]). Its task has a random ID that only this host knows, so that no later request finds it in a cache.
type transfers struct {
	// mu is held to find or add a transfer, never during a request to the origin.
	mu  sync.Mutex
	all map[string]*transfer
}

type transfer struct {
	id      task.ID
	began   time.Time
	content *peer.Content // the first reader's; nil until it is open
	readers int
}

// openTransfer opens the running transfer of an equal request, or begins one. If the origin's reply shows another
// length or date than before, the file has changed, and the running transfer is of no use. When its last reader leaves,
// the store deletes the task.
func (f *files) openTransfer(ctx context.Context, q fileRequest, info httporigin.Info,
	d sharing.Decision) (*held, error) {
	key := string(identify(q.file, info, d.Cover, q.spec.Digest).ID())
	t := f.transfers.join(key, q.covers.Control.MaxAge, f.now())
	spec := q.spec
	spec.ID, spec.Share, spec.Alone = t.id, string(sharing.Flight), true
	content, err := f.open(ctx, spec)
	leave := func() {
		if f.transfers.leave(key, t) {
			// The store logs an error. No other request can find the task, whose ID is random.
			_ = f.drop(t.id)
		}
	}
	if err != nil {
		f.transfers.remove(key, t)
		f.deleting.Go(leave) // this client does not wait for a disk
		return nil, err
	}
	f.transfers.opened(t, content)
	return &held{Content: content, broke: func() { f.transfers.remove(key, t) }, release: func() {
		content.Close()
		leave()
	}}, nil
}

// join returns an incomplete transfer of the key that is at most maxAge old (negative: any age), or adds one.
func (ts *transfers) join(key string, maxAge time.Duration, now time.Time) *transfer {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[key]
	complete := t != nil && t.content != nil && t.content.Complete()
	if t == nil || complete || maxAge >= 0 && now.Sub(t.began) > maxAge {
		t = &transfer{id: randomID(), began: now}
		if ts.all == nil {
			ts.all = map[string]*transfer{}
		}
		ts.all[key] = t
	}
	t.readers++
	return t
}

func (ts *transfers) opened(t *transfer, c *peer.Content) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.content == nil {
		t.content = c
	}
}

// remove lets no further request join a broken transfer: its missing bytes could belong to another version.
func (ts *transfers) remove(key string, t *transfer) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.all[key] == t {
		delete(ts.all, key)
	}
}

// leave reports whether the transfer lost its last reader. No request can join it then.
func (ts *transfers) leave(key string, t *transfer) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.readers--; t.readers > 0 {
		return false
	}
	if ts.all[key] == t {
		delete(ts.all, key)
	}
	return true
}

// randomID returns a task ID that no other request or host computes.
func randomID() task.ID {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return task.ID("file:" + hex.EncodeToString(b[:]))
}

// serveDirect copies a file from its origin to one client and stores nothing. It ignores a Range and sends the whole
// file: without a version, the part could belong to other bytes than the client has.
func (f *files) serveDirect(w http.ResponseWriter, r *http.Request, q fileRequest, why string, pull *telemetry.Pull,
	started time.Time) {
	spec := q.spec
	spec.Validator, spec.Length = "", 0
	res, err := f.direct(r.Context(), spec, 0)
	if err != nil {
		e := fileError(r.Context(), pull, err)
		writeError(w, e.Code(), e)
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
	pull.FirstByte = f.now().Sub(started)
	sent, err := copyChecked(w, res.Body, spec.Digest)
	pull.Bytes = api.Sources{Origin: sent}
	switch {
	case err == nil:
		pull.Result = telemetry.OK
		return
	case r.Context().Err() != nil, left(err):
		pull.Result = telemetry.Canceled
	default:
		pull.Result, pull.Err = telemetry.Failed, err
	}
	// Otherwise a body without a length would look complete.
	if res.Length < 0 && !r.ProtoAtLeast(1, 1) {
		reset(w)
	}
	panic(http.ErrAbortHandler)
}

// reset ends a connection by a TCP reset: without a length, an HTTP/1.0 client takes any other end for that of the body
// (RFC 9112 §6.3).
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if linger, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = linger.SetLinger(0)
	}
	conn.Close()
}

// copySize bounds the bytes of a body that are held back until its digest is verified.
const copySize = 256 << 10

// copyChecked copies a body. With a digest, it writes the last bytes only after the whole body matches the digest.
func copyChecked(w io.Writer, body io.Reader, digest string) (sent int64, err error) {
	if digest == "" {
		return io.Copy(w, body)
	}
	h, err := oci.NewHash(digest)
	if err != nil {
		return 0, err
	}
	var held []byte
	write := func(b []byte) error {
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
		if err := write(held); err != nil {
			return sent, err
		}
		if ended {
			return sent, write(next[:n])
		}
		held, next, other = next[:n], other, next
	}
}

func digestFits(digest string, h hash.Hash) error {
	algorithm, _, _ := strings.Cut(digest, ":")
	if got := algorithm + ":" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("the origin sent a file with digest %s, want %s", got, digest)
	}
	return nil
}

// describe sets the header fields of every file.
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

// printable makes a text a valid header value of at most 300 bytes.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
	return s[:min(len(s), 300)]
}
