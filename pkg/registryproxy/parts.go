package registryproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/textproto"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
)

// partsAhead is how many windows of a request are open at once: the swarm brings them in any order, and each costs an
// entry in the download.
const partsAhead = 8

// parts is the body of a response to several ranges: multipart/byteranges (RFC 9110 §14.6). One goroutine
// reads it.
type parts struct {
	ctx     context.Context
	blob    Blob
	windows []oci.Window
	headers []string // what comes before each window, and after the last one
	readers []Reader // of windows, as far as they were opened
	at      int      // the window that comes next or now
	text    string   // of headers, that comes first
	begun   bool     // a byte of a window has been read
	part    bool     // the client checks the bytes; see newWindow
}

// newParts returns the body, its Content-Type and its length in bytes.
func newParts(
	ctx context.Context, blob Blob, windows []oci.Window, mediaType string, part bool,
) (*parts, string, int64) {
	p := &parts{ctx: ctx, blob: blob, windows: windows, part: part}
	total := blob.Metadata().Length
	var text strings.Builder
	w := multipart.NewWriter(&text)
	length := int64(0)
	add := func() {
		p.headers = append(p.headers, text.String())
		length += int64(text.Len())
		text.Reset()
	}
	for _, one := range windows {
		// Writing to a strings.Builder never fails.
		_, _ = w.CreatePart(textproto.MIMEHeader{"Content-Type": {mediaType}, "Content-Range": {one.ContentRange(total)}})
		add()
		length += one.Length
	}
	_ = w.Close()
	add()
	p.text = p.headers[0]
	p.open()
	return p, "multipart/byteranges; boundary=" + w.Boundary(), length
}

// open opens the readers of the next windows.
func (p *parts) open() {
	for n := len(p.readers); n < min(p.at+partsAhead, len(p.windows)); n++ {
		p.readers = append(p.readers, newWindow(p.ctx, p.blob, p.windows[n], p.part))
	}
}

// Read implements [io.Reader]. It returns no byte before the first window has one.
func (p *parts) Read(b []byte) (int, error) {
	n := copy(b, p.text)
	if p.text = p.text[n:]; p.text != "" || n == len(b) || n > 0 && p.begun {
		return n, nil
	}
	if p.at == len(p.windows) {
		return n, io.EOF
	}
	m, err := p.readers[p.at].Read(b[n:])
	if m > 0 {
		p.begun = true
	}
	if m == 0 && !p.begun && err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if errors.Is(err, io.EOF) {
		err = p.next()
	}
	return n + m, err
}

// next moves on to the next window.
func (p *parts) next() error {
	err := p.readers[p.at].Close()
	p.readers[p.at] = nil
	p.at++
	p.text = p.headers[p.at]
	p.open()
	return err
}

// WriteTo implements [io.WriterTo].
func (p *parts) WriteTo(w io.Writer) (sum int64, err error) {
	for {
		n, err := io.WriteString(w, p.text)
		sum += int64(n)
		if p.text = p.text[n:]; err != nil || p.at == len(p.windows) {
			return sum, err
		}
		m, err := p.readers[p.at].WriteTo(w)
		if sum += m; err != nil {
			return sum, fmt.Errorf("range %d of %d: %w", p.at+1, len(p.windows), err)
		}
		if err := p.next(); err != nil {
			return sum, err
		}
	}
}

// Close implements [io.Closer].
func (p *parts) Close() error {
	var errs []error
	for _, r := range p.readers {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}
