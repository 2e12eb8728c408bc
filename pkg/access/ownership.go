package access

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// wholeMax is the largest blob, in bytes, that is compared as a whole; configs and manifests are
	// mostly smaller.
	wholeMax = 64 << 10
	// sampleLength is the length of the window of a larger blob that is compared, in bytes.
	sampleLength = 4 << 10
	// doubtedWithin is how far from the beginning of a blob the window of a listed registry lies, in bytes.
	doubtedWithin = 1 << 20
	// ownedMax bounds the remembered ownership proofs. A forgotten one costs one small GET.
	ownedMax = 8 << 10
)

// OwnershipError reports that a registry granted a blob and could not show its bytes.
type OwnershipError struct{ Upstream, Path string }

func (e *OwnershipError) Error() string {
	return fmt.Sprintf("%s says that it has %s, and does not send its bytes; list the registry in upstreams to trust it",
		e.Upstream, e.Path)
}

// ProveOwnership makes a registry that the operator did not list show a random window of a blob: otherwise its
// permission for a digest would open what another registry keeps private. length is the blob's, and read returns a
// window of it from the store. A registry that has shown a blob need not show it again within the longest life of a
// grant. With doubted, a listed registry shows a window near the blob's beginning too: its HEAD stated another length,
// so that it may permit every digest, or its answer was not encrypted, so that another server may have sent it. The
// error is an *[OwnershipError], a *[RefusedError], an *[UnreachableError], or that of read.
func (r *Resolver) ProveOwnership(
	ctx context.Context, l Lookup, length int64, doubted bool, read func(oci.Window) ([]byte, error),
) error {
	trusted := r.cfg.Trusted(l.Upstream)
	key := ownedKey{upstream: l.Upstream, id: l.ID}
	if trusted {
		key.subject = l.subject() // the doubt concerns the permission of this credential
	}
	if length == 0 || trusted && !doubted || r.owned.has(key, time.Now()) {
		return nil
	}
	w, within := oci.Window{Length: length}, length
	if trusted {
		within = min(length, doubtedWithin) // a client waits for it
	}
	if within > wholeMax {
		w = oci.Window{Offset: rand.Int64N(within - sampleLength + 1), Length: sampleLength}
	}
	theirs, err := r.getWindow(ctx, l, w, length)
	if err != nil {
		return err
	}
	ours, err := read(w)
	if err != nil {
		return err
	}
	if !bytes.Equal(theirs, ours) {
		return &OwnershipError{l.Upstream, l.Path()}
	}
	r.owned.put(key, time.Now().Add(r.policy.Load().GrantLife))
	return nil
}

// getWindow reads a window of a blob from the registry; the result is shorter if the registry has
// less.
func (r *Resolver) getWindow(ctx context.Context, l Lookup, w oci.Window, length int64) ([]byte, error) {
	byteRange := fmt.Sprintf("bytes=%d-%d", w.Offset, w.Offset+w.Length-1)
	res, err := r.Send(ctx, r.request(l, http.MethodGet, byteRange, ""))
	if err == nil && refusesRange(res) {
		res.Body.Close()
		res, err = r.Send(ctx, r.request(l, http.MethodGet, "", ""))
	}
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusTooManyRequests, res.StatusCode >= 500:
		return nil, ReadRefusal(l.Upstream, l.Path(), res)
	case res.StatusCode == http.StatusOK: // it ignores the Range
		if res.ContentLength >= 0 && res.ContentLength != length {
			return nil, nil
		}
		if _, err := io.CopyN(io.Discard, res.Body, w.Offset); err != nil {
			return nil, nil
		}
	case res.StatusCode != http.StatusPartialContent || res.Header.Get("Content-Range") != w.ContentRange(length):
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, w.Length))
	if err != nil {
		return nil, &UnreachableError{fmt.Errorf("reading %s of %s: %w", l.Path(), l.Upstream, err)}
	}
	return b, nil
}

// owned remembers which registries have shown which blobs, and until when that is valid.
type owned struct {
	// mu is held to look up and change, never while a registry is asked.
	mu     sync.Mutex
	recent *simplelru.LRU[ownedKey, time.Time]
}

type ownedKey struct {
	upstream string
	id       task.ID
	// subject is set if the proof is for one credential alone.
	subject subject
}

func newOwned() *owned {
	return &owned{recent: newLRU[ownedKey, time.Time](ownedMax, nil)}
}

func (o *owned) has(k ownedKey, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	until, ok := o.recent.Get(k)
	return ok && !past(now, until)
}

func (o *owned) put(k ownedKey, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recent.Add(k, until)
}

func (o *owned) clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recent.Purge()
}
