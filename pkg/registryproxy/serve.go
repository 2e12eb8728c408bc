package registryproxy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// firstBytes is how much of a body is read before its headers are written: a content that
// fails before that is an error the client can act on.
const firstBytes = 2048

// serveContent answers for a manifest or blob.
func (x *exchange) serveContent() *refusal {
	v, refused := x.ask()
	if refused != nil {
		return refused
	}
	x.pull.Asked = max(time.Since(x.began), 1) // 0 would say that it did not come to that
	x.pull.Task = v.id
	h := x.w.Header()
	h.Set("Docker-Content-Digest", string(v.id))
	h.Set("ETag", `"`+string(v.id)+`"`)
	h.Set("Accept-Ranges", "bytes")
	if unchanged(x.r.Header.Get("If-None-Match"), v.id) {
		x.pull.Status = http.StatusNotModified
		x.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	// To tell a content's size is no reason to download it.
	if x.r.Method == http.MethodHead && (v.length > 0 || v.named) && (x.t.endpoint == endpointBlob || oci.NamesContent(v.mediaType)) {
		x.head(x.mediaType(v.mediaType, ""), v.length)
		return nil
	}

	spec := task.Spec{
		ID: v.id, Kind: x.t.kind(), Upstream: x.t.upstream, Repository: x.t.repository,
		Authorization: secret.String(x.authorization),
	}
	if spec.Kind == task.Manifest {
		spec.Accept = x.accept()
	}
	if v.named {
		// A manifest's word on the size of another blob is not the registry's: it binds what is
		// read for this client, and fails the blob for nobody who comes with another manifest.
		spec.Promised = v.length
	} else {
		spec.Length = v.length
	}
	content, err := x.open(spec)
	var f *api.Failure
	if errors.As(err, &f) && f.Status == http.StatusUnauthorized && !x.others(f) {
		x.desk.rights.dropHolder(v.holder) // it was told to come with others
	}
	if noRoom(err) {
		content, err = x.unkept(spec, v.length, err)
	}
	if err != nil {
		return x.failed(fmt.Errorf("opening %s: %w", x.t.path(), err))
	}
	x.pull.Content = content // closed when it was observed
	x.pull.Opened = max(time.Since(x.began), 1)
	if length := content.Facts().Length; v.length > 0 && !v.named && v.length != length {
		// Something that says yes to everything, perhaps: whatever it has, this it has not.
		x.desk.rights.drop(v.holder, v.object)
		return refuse(http.StatusNotFound, "%s says that %s has %d bytes, and it has %d", x.t.upstream, x.t.path(), v.length, length).
			as(codeFor(http.StatusNotFound, x.t.endpoint))
	}
	if length := content.Facts().Length; v.length > 0 && v.named && v.length != length && !x.checked(content) {
		return refuse(http.StatusBadGateway, "%s has %d bytes by the manifest that names it, and is %d bytes long by the word of %s", x.t.path(), v.length, length, x.t.upstream)
	}
	if !x.pull.Direct { // else the registry shows it by giving it
		if refused := x.prove(content, v); refused != nil {
			return refused
		}
	}
	return x.send(content, v)
}

// checked reports whether a content was here, whole and compared with its digest, when it was opened:
// then it is as long as it is, whatever a manifest says.
func (x *exchange) checked(c Content) bool {
	store, ok := c.(interface{ Cached() bool })
	return !x.pull.Direct && (!ok || store.Cached())
}

// opensMax is how often a content is opened for one request, while it is others' failures that
// are told.
const opensMax = 4

// open opens a content. It may be on its way already, for others and with their credentials:
// that it could not be brought for them is no answer to this client, to whom its registry has
// consented.
func (x *exchange) open(spec task.Spec) (content Content, err error) {
	defer x.waitOn(spec.ID)()
	for tries := 1; ; tries++ {
		content, err = x.cfg.Open(x.ctx, spec)
		var f *api.Failure
		if !errors.As(err, &f) {
			return content, err
		}
		// The words may be meant for somebody who began with credentials that have ended since.
		stale := tries == 1 && (f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden)
		if !stale && (!x.others(f) || tries == opensMax) {
			return content, err
		}
	}
}

// others reports whether a failure is an answer to others and none to this client: another
// registry's, or a refusal that is about another repository.
func (x *exchange) others(f *api.Failure) bool {
	if f.Personal() {
		return f.Upstream != x.t.upstream || f.Repository != x.t.repository
	}
	return f.Upstream != "" && f.Upstream != x.t.upstream
}

// send writes an open content, or the window of it that the client asked for.
func (x *exchange) send(content Content, v right) *refusal {
	total := content.Facts().Length
	mediaType := x.mediaType(v.mediaType, content.Facts().MediaType)
	if x.t.endpoint == endpointManifest && (mediaType == "" || x.mayAdopt(v)) {
		manifest, err := x.readManifest(content)
		if err != nil {
			return x.failed(fmt.Errorf("reading %s: %w", x.t.path(), err))
		}
		x.adopt(v, mediaType, manifest)
		mediaType = cmp.Or(mediaType, oci.SniffManifest(manifest), "application/json")
	}
	if x.r.Method == http.MethodHead {
		x.head(mediaType, total)
		return nil
	}

	window, status := oci.Window{Length: total}, http.StatusOK
	replaced := x.replaced(v.id)
	if replaced {
		x.w.Header().Set("Accept-Ranges", "none")
	}
	if asked := x.r.Header.Get("Range"); asked != "" && !replaced && mayRange(x.r.Header.Get("If-Range"), v.id) {
		windows, err := oci.ParseRange(asked, total)
		switch {
		case err != nil:
			return unsatisfied(err, total)
		case len(windows) > 1:
			// The refusal after which containers/image takes the whole blob, and stargz
			// asks for one range at a time.
			return refuse(http.StatusBadRequest, "this mirror serves one byte range at a time")
		case len(windows) == 1:
			window, status = windows[0], http.StatusPartialContent
			x.pull.Ranged = true
		}
	}
	reader := content.NewReader(x.ctx, window.Offset, window.Length)
	defer reader.Close()
	buf := make([]byte, min(firstBytes, window.Length))
	n, err := io.ReadAtLeast(reader, buf, min(1, len(buf)))
	if n == 0 && err != nil || !x.late.Stop() {
		return x.failed(fmt.Errorf("reading %s: %w", x.t.path(), orEOF(err)))
	}
	x.pull.FirstByte = time.Since(x.began)

	h := x.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.FormatInt(window.Length, 10))
	if status == http.StatusPartialContent {
		h.Set("Content-Range", window.ContentRange(total))
	}
	x.pull.Status = status
	x.w.WriteHeader(status)
	written, writeErr := x.w.Write(buf[:n])
	x.pull.Bytes = int64(written)
	if err == nil && writeErr == nil && x.pull.Bytes < window.Length {
		var sent int64
		sent, err = reader.WriteTo(x.w)
		x.pull.Bytes += sent
	}
	if x.pull.Bytes != window.Length {
		x.pull.Err = fmt.Errorf("sending %s: %d of %d bytes: %w", x.t.path(), x.pull.Bytes, window.Length, orEOF(errors.Join(writeErr, err)))
		cut(x.w, x.r.UserAgent())
	}
	return nil
}

// head answers a HEAD with the headers of the GET.
func (x *exchange) head(mediaType string, length int64) {
	h := x.w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	x.pull.Status = http.StatusOK
	x.w.WriteHeader(http.StatusOK)
}

// mediaType is what the content is served as: for a manifest what the registry says to
// this client, or else what it said when the content was stored, which may have been as a
// blob. It is empty for a manifest when nobody said.
func (x *exchange) mediaType(said, stored string) string {
	switch {
	case x.t.endpoint == endpointBlob:
		return oci.MediaTypeBlob
	case oci.NamesContent(said):
		return said
	case oci.NamesContent(stored):
		return stored
	}
	return ""
}

// unchanged reports whether a client's If-None-Match names the content (RFC 9110 §13.1.2).
func unchanged(header string, id task.ID) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag == "*" || strings.Trim(tag, `"`) == string(id) {
			return true
		}
	}
	return false
}

// mayRange reports whether a Range counts: an If-Range that names another content turns it
// off (RFC 9110 §13.1.5).
func mayRange(ifRange string, id task.ID) bool {
	return ifRange == "" || strings.Trim(ifRange, `"`) == string(id)
}

// orEOF gives a body that ended early without a reason one.
func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// lingerMax is how long and drainMax how much a connection that was cut is listened to.
const (
	lingerMax = time.Second
	drainMax  = 256 << 10
)

// cut ends a body that is shorter than its Content-Length, so that the client sees what
// was sent and then an end, on which it resumes. A reset would make it lose what it has
// not read yet, and containerd fails a pull over one; therefore our side is closed first,
// and what the client still sends is read before the socket goes. The few clients with which
// it is the other way round are reset.
func cut(w http.ResponseWriter, userAgent string) {
	control := http.NewResponseController(w)
	_ = control.Flush()
	conn, _, err := control.Hijack()
	if err != nil {
		// HTTP/2 cannot be hijacked: this ends the stream and not the connection.
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	if linger, ok := conn.(interface{ SetLinger(seconds int) error }); ok && startsOverAfterReset(userAgent) {
		_ = linger.SetLinger(0)
		return
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerMax))
	_, _ = io.CopyN(io.Discard, conn, drainMax)
}

var _ interface {
	CloseWrite() error
	SetLinger(seconds int) error
} = (*net.TCPConn)(nil)

// startsOverAfterReset tells the clients that end a pull over a short body but begin the layer
// anew after a reset: Podman up to 4.3 and Buildah up to 1.28 (measured, docs/clients.md).
// Their successors resume after either.
func startsOverAfterReset(userAgent string) bool {
	name, version, _ := strings.Cut(userAgent, "/")
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	switch name {
	case "containers": // Podman says the version of containers/image
		return major < 5 || major == 5 && minor <= 23
	case "Buildah":
		return major < 1 || major == 1 && minor <= 28
	}
	return false
}
