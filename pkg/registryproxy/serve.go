package registryproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/task"
)

// firstBytes is how much of a body is read before its headers are written, in bytes: a blob that fails
// before that is an error that the client can act on.
const firstBytes = 2048

// serveBlob answers with a manifest or blob that the client may read.
func (req *request) serveBlob(g access.Grant) *apiError {
	req.pull.Granted = max(time.Since(req.began), 1) // 0 would say that the request ended before
	req.pull.Task = g.ID
	h := req.w.Header()
	h.Set("Docker-Content-Digest", string(g.ID))
	h.Set("ETag", `"`+string(g.ID)+`"`)
	h.Set("Accept-Ranges", "bytes")
	if matches(req.r.Header.Get("If-None-Match"), g.ID) {
		req.pull.Status = http.StatusNotModified
		req.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	// A client that wants the size only is no reason to download the blob.
	if req.r.Method == http.MethodHead && (g.Length > 0 || g.Declared) &&
		(req.target.endpoint == endpointBlob || oci.NamesContent(g.MediaType)) {
		req.writeHead(req.mediaType(g.MediaType, ""), g.Length)
		return nil
	}
	blob, err := req.open(g)
	if err != nil {
		return req.failed(fmt.Errorf("opening %s: %w", req.target.path(), err))
	}
	req.pull.Blob = blob // closed by observe
	req.pull.Opened = max(time.Since(req.began), 1)
	if err := req.checkBlob(blob, g); err != nil {
		return err
	}
	return req.send(blob, g)
}

// opensMax is how often a blob is opened for one request while the errors are those of others.
const opensMax = 4

// open opens a blob in the swarm, or past every store where a disk is full.
func (req *request) open(g access.Grant) (Blob, error) {
	spec := req.spec(g)
	blob, err := req.openShared(spec)
	var f *api.Failure
	if !errors.As(err, &f) {
		return blob, err
	}
	if f.Status == http.StatusUnauthorized && !req.isForeign(f) {
		req.cfg.Resolver.RevokeCredential(g)
	}
	if f.Full {
		return req.openPassthrough(spec, g.Length, err)
	}
	return blob, err
}

// openShared opens a blob in the swarm. Its download may have begun for other clients, with their credentials: their
// failure is no answer to this client, which has a grant.
func (req *request) openShared(spec task.Spec) (blob Blob, err error) {
	req.holdWhile(func() policy.Signs { return req.signs(spec.ID) })
	for tries := 1; ; tries++ {
		blob, err = req.cfg.Open(req.ctx, spec)
		var f *api.Failure
		if !errors.As(err, &f) {
			return blob, err
		}
		// The first error may be of a client whose credentials have ended since.
		stale := tries == 1 && (f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden)
		if !stale && (!req.isForeign(f) || tries == opensMax) {
			return blob, err
		}
	}
}

// isForeign reports whether a failure answers other clients and not this one: another registry sent it, or it concerns
// another repository.
func (req *request) isForeign(f *api.Failure) bool {
	if f.Personal() {
		return f.Upstream != req.target.upstream || f.Repository != req.target.repository
	}
	return f.Upstream != "" && f.Upstream != req.target.upstream
}

// checkBlob compares an open blob with what the grant states about it, and lets a registry that the
// operator did not list prove that it has the blob.
func (req *request) checkBlob(blob Blob, g access.Grant) *apiError {
	length, path := blob.Metadata().Length, req.target.path()
	differs := g.Length != 0 && g.Length != length
	if differs && g.Declared && !req.isVerified(blob) {
		return newError(http.StatusBadGateway, "%s has %d bytes by the manifest that names it, and %d bytes by %s",
			path, g.Length, length, req.target.upstream)
	}
	if req.pull.Passthrough { // the registry shows that it has the blob by sending it
		return nil
	}
	var read error
	err := req.cfg.Resolver.ProveOwnership(req.ctx, req.lookup().At(g.ID), length, differs && !g.Declared || g.Doubted,
		func(w oci.Window) (b []byte, _ error) {
			b, read = readWindow(req.ctx, blob, w)
			return b, read
		})
	var missing *access.OwnershipError
	switch {
	case err == nil:
		return nil
	case read != nil:
		return req.failed(fmt.Errorf("reading %s: %w", path, read))
	case errors.As(err, &missing) && differs:
		req.cfg.Resolver.Revoke(g)
		return newError(http.StatusNotFound, "%s says that %s has %d bytes, and does not send the %d that it has",
			req.target.upstream, path, g.Length, length).withCode(codeFor(http.StatusNotFound, req.target.endpoint))
	case errors.As(err, &missing):
		return newError(http.StatusNotFound, "%v", missing).withCode(codeFor(http.StatusNotFound, req.target.endpoint))
	}
	return req.refused(err)
}

// isVerified reports whether a blob was in the store, whole and compared with its digest, when it was
// opened: then its length is right whatever a manifest says.
func (req *request) isVerified(blob Blob) bool {
	store, ok := blob.(interface{ Cached() bool })
	return !req.pull.Passthrough && (!ok || store.Cached())
}

// send writes an open blob, or the range of it that the client asked for.
func (req *request) send(blob Blob, g access.Grant) *apiError {
	total := blob.Metadata().Length
	mediaType, refused := req.learnManifest(blob, g)
	if refused != nil {
		return refused
	}
	if req.r.Method == http.MethodHead {
		req.writeHead(mediaType, total)
		return nil
	}
	windows, refused := req.windows(g.ID, total)
	if refused != nil {
		return refused
	}
	reader, head := req.body(blob, windows, mediaType)
	defer reader.Close()
	buf := make([]byte, min(firstBytes, head.length))
	n, err := io.ReadAtLeast(reader, buf, min(1, len(buf)))
	if n == 0 && err != nil || !req.hold.stop() {
		return req.failed(fmt.Errorf("reading %s: %w", req.target.path(), orEOF(err)))
	}
	req.pull.FirstByte = time.Since(req.began)

	h := req.w.Header()
	h.Set("Content-Type", head.mediaType)
	h.Set("Content-Length", strconv.FormatInt(head.length, 10))
	if head.contentRange != "" {
		h.Set("Content-Range", head.contentRange)
	}
	req.pull.Status = head.status
	req.w.WriteHeader(head.status)
	written, writeErr := req.w.Write(buf[:n])
	req.pull.Bytes = int64(written)
	if err == nil && writeErr == nil && req.pull.Bytes < head.length {
		var sent int64
		sent, err = reader.WriteTo(req.w)
		req.pull.Bytes += sent
	}
	if req.pull.Bytes != head.length {
		req.pull.Err = fmt.Errorf("sending %s: %d of %d bytes: %w", req.target.path(), req.pull.Bytes, head.length,
			orEOF(errors.Join(writeErr, err)))
		endShort(req.w, req.r.UserAgent())
	}
	return nil
}

// learnManifest returns the media type to serve, and lets a manifest grant what it names.
func (req *request) learnManifest(blob Blob, g access.Grant) (string, *apiError) {
	mediaType := req.mediaType(g.MediaType, blob.Metadata().MediaType)
	if req.target.endpoint != endpointManifest || mediaType != "" && !req.cfg.Resolver.AdoptsManifest(g) {
		return mediaType, nil
	}
	var manifest []byte
	if total := blob.Metadata().Length; total <= oci.ManifestParsed {
		var err error
		if manifest, err = readWindow(req.ctx, blob, oci.Window{Length: total}); err != nil {
			return "", req.failed(fmt.Errorf("reading %s: %w", req.target.path(), err))
		}
	}
	req.cfg.Resolver.AdoptManifest(g, mediaType, manifest)
	return cmp.Or(mediaType, oci.SniffManifest(manifest), "application/json"), nil
}

// bodyHead is what the headers say of a body.
type bodyHead struct {
	status                  int
	length                  int64
	mediaType, contentRange string
}

// body returns the whole blob if there are no windows, else those.
func (req *request) body(blob Blob, windows []oci.Window, mediaType string) (Reader, bodyHead) {
	total := blob.Metadata().Length
	switch len(windows) {
	case 0:
		return blob.NewReader(req.ctx, 0, total), bodyHead{http.StatusOK, total, mediaType, ""}
	case 1:
		w := windows[0]
		return newWindow(req.ctx, blob, w, w.Length < total && req.namesEnds()),
			bodyHead{http.StatusPartialContent, w.Length, mediaType, w.ContentRange(total)}
	}
	parts, contentType, length := newParts(req.ctx, blob, windows, mediaType, req.namesEnds())
	return parts, bodyHead{http.StatusPartialContent, length, contentType, ""}
}

// namesEnds reports whether each part of the client's range names its end. Such clients (eStargz, SOCI) assemble the
// blob and check its parts by themselves. A range without an end is a resumption or belongs to a parallel fetcher,
// whose client takes the sum of the bodies for the blob: it gets the last bytes only after the whole was checked.
func (req *request) namesEnds() bool {
	for spec := range strings.SplitSeq(req.r.Header.Get("Range"), ",") {
		if strings.HasSuffix(strings.TrimSpace(spec), "-") {
			return false
		}
	}
	return true
}

// newWindow reads a window of a blob; part says that its client checks what it gets.
func newWindow(ctx context.Context, blob Blob, w oci.Window, part bool) Reader {
	if p, ok := blob.(PartBlob); ok && part {
		return p.NewPartReader(ctx, w.Offset, w.Length)
	}
	return blob.NewReader(ctx, w.Offset, w.Length)
}

// windows are the parts of a blob that the client asks for; nil means the whole blob.
func (req *request) windows(id task.ID, total int64) ([]oci.Window, *apiError) {
	if req.isReplaced(id) {
		req.w.Header().Set("Accept-Ranges", "none")
		return nil, nil
	}
	asked, ifRange := req.r.Header.Get("Range"), req.r.Header.Get("If-Range")
	// An If-Range that names another digest turns the Range off (RFC 9110 §13.1.5).
	if asked == "" || ifRange != "" && strings.Trim(ifRange, `"`) != string(id) {
		return nil, nil
	}
	windows, err := oci.ParseRange(asked, total)
	if err != nil {
		e := newError(http.StatusRequestedRangeNotSatisfiable, "%v", err)
		e.header = http.Header{"Content-Range": {oci.UnsatisfiedRange(total)}}
		return nil, e
	}
	var sum int64
	for _, w := range windows {
		sum += w.Length
	}
	if len(windows) > 1 && (sum > total || req.pull.Passthrough) {
		// Overlapping ranges may ask for the blob many times over, and past every store each window costs a
		// GET of the whole: a server may answer with the whole (RFC 9110 §14.2).
		return nil, nil
	}
	req.pull.Ranged = len(windows) > 0
	return windows, nil
}

// writeHead answers a HEAD with the headers of the GET.
func (req *request) writeHead(mediaType string, length int64) {
	h := req.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	req.pull.Status = http.StatusOK
	req.w.WriteHeader(http.StatusOK)
}

// mediaType is the Content-Type to serve: for a manifest that of the registry's reply to this client, or else the
// stored one, which may be that of a blob. It is empty if a manifest has neither.
func (req *request) mediaType(granted, stored string) string {
	switch {
	case req.target.endpoint == endpointBlob:
		return oci.MediaTypeBlob
	case oci.NamesContent(granted) && !(generic(granted) && oci.NamesContent(stored)):
		return granted
	case oci.NamesContent(stored):
		return stored
	}
	return ""
}

// generic reports whether a media type says nothing of a manifest: some registries give such a one in reply to a HEAD.
func generic(mediaType string) bool {
	return strings.HasPrefix(mediaType, "text/") || strings.HasPrefix(mediaType, "application/json")
}

// matches reports whether a client's If-None-Match names the digest (RFC 9110 §13.1.2).
func matches(header string, id task.ID) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || strings.Trim(tag, `"`) == string(id) {
			return true
		}
	}
	return false
}

// readWindow reads a window of a blob into memory.
func readWindow(ctx context.Context, blob Blob, w oci.Window) ([]byte, error) {
	r := blob.NewReader(ctx, w.Offset, w.Length)
	defer r.Close()
	return io.ReadAll(r)
}

// orEOF returns io.ErrUnexpectedEOF for a body that ended early without an error.
func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
