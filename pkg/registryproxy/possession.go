package registryproxy

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
)

const (
	// wholeMax is the largest content, in bytes, that is compared as a whole; configurations
	// and manifests are mostly smaller.
	wholeMax = 64 << 10
	// sampleLength is the length of the window that is compared of a larger one, in bytes.
	sampleLength = 4 << 10
	// endpointPossession is the object of what a registry was seen to hold.
	endpointPossession = "possession"
)

// prove makes a registry that nobody vouches for show that it holds the content, by a window
// of it that is drawn at random: else its mere "yes" to a digest would open what another
// registry keeps for its own. What it has shown it need not show again for a while.
func (x *exchange) prove(content Content, v right) *refusal {
	total := content.Facts().Length
	if total == 0 || x.cfg.Vouches(x.t.upstream) {
		return nil
	}
	h, o := holder{upstream: x.t.upstream}, object{endpointPossession, v.id}
	if _, counts, _ := x.desk.rights.get(h, o, time.Now()); counts {
		return nil
	}
	w := oci.Window{Length: total}
	if total > wholeMax {
		w = oci.Window{Offset: rand.Int64N(total - sampleLength + 1), Length: sampleLength}
	}
	q := x.question()
	q.reference = string(v.id)
	theirs, err := x.theirs(q, w, total)
	if err != nil {
		return x.unreached(err)
	}
	r := content.NewReader(x.ctx, w.Offset, w.Length)
	defer r.Close()
	ours, err := io.ReadAll(r)
	if err != nil {
		return x.failed(fmt.Errorf("reading %s: %w", x.t.path(), err))
	}
	if !bytes.Equal(theirs, ours) {
		return refuse(http.StatusNotFound, "%s says that it has %s, and does not; it is not listed in upstreams, so its word alone does not count", x.t.upstream, x.t.path()).
			as(codeFor(http.StatusNotFound, x.t.endpoint))
	}
	x.desk.rights.put(right{verdict: verdict{id: v.id}, until: time.Now().Add(x.desk.policy.Load().RightsLife), holder: h, object: o})
	return nil
}

// theirs reads a window of the content from the registry; it is shorter where the registry
// has less.
func (x *exchange) theirs(q question, w oci.Window, total int64) ([]byte, error) {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", w.Offset, w.Offset+w.Length-1)}}
	if q.authorization != "" {
		header.Set("Authorization", q.authorization)
	}
	if len(q.accept) > 0 {
		header["Accept"] = q.accept
	}
	res, err := forward(x.ctx, x.cfg.Upstream, source.RegistryRequest{Upstream: q.upstream, Method: http.MethodGet, Path: q.path(), Header: header, Anonymous: q.anonymous})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK: // it takes no Range
		if res.ContentLength >= 0 && res.ContentLength != total {
			return nil, nil
		}
		if _, err := io.CopyN(io.Discard, res.Body, w.Offset); err != nil {
			return nil, nil
		}
	case res.StatusCode != http.StatusPartialContent || res.Header.Get("Content-Range") != w.ContentRange(total):
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, w.Length))
	if err != nil {
		return nil, fmt.Errorf("reading %s of %s: %w", q.path(), q.upstream, err)
	}
	return b, nil
}
