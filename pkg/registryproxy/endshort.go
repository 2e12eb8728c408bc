package registryproxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// lingerMax bounds how long, and drainMax how many bytes, a connection that was cut is read.
const (
	lingerMax = time.Second
	drainMax  = 256 << 10
)

// endShort ends a body that is shorter than its Content-Length, so that the client sees the bytes that were sent and
// then an end, after which it resumes. A reset would drop what the client has not read yet, and containerd fails a pull
// after a reset. So this side closes its half first, and reads what the client still sends before it closes the socket.
// The few clients that need a reset get one.
func endShort(w http.ResponseWriter, userAgent string) {
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

// startsOverAfterReset reports whether a client fails a pull after a short body, but starts the layer again after a
// reset: Podman up to 4.3 and Buildah up to 1.28 (measured, docs/clients.md). Later versions resume after either.
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
