package httpserver

import (
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/telemetry"
)

// Limiter bounds the connections of one node's listeners, and logs and counts the connections that it closes. Safe for
// concurrent use.
type Limiter struct {
	log     *slog.Logger
	metrics *telemetry.ConnRefusals
	// handshake is how long a TLS handshake may take, header how long a request's header, and
	// body how long reads of a request's body may wait in all before it must arrive at bodyRate.
	handshake, header, body time.Duration

	// mu is held to count closed connections that are not logged.
	mu     sync.Mutex
	logged map[telemetry.ConnRefusal]*quiet
	errors quiet
}

// NewLimiter returns a Limiter with the limits of every server. m counts the connections that it closes; nil counts
// none.
func NewLimiter(l *slog.Logger, m *telemetry.ConnRefusals) *Limiter {
	return &Limiter{log: l, metrics: m, handshake: handshakeTimeout, header: headerTimeout, body: bodyTimeout,
		logged: map[telemetry.ConnRefusal]*quiet{}}
}

// quiet allows one log line a minute, and counts the others.
type quiet struct {
	last time.Time
	more int
}

// quietFor is the shortest time between two log lines of one kind.
const quietFor = time.Minute

func (q *quiet) tell(now time.Time) (tell bool, more int) {
	if now.Sub(q.last) < quietFor {
		q.more++
		return false, 0
	}
	more = q.more
	*q = quiet{last: now}
	return true, more
}

// refused counts a refused connection, and logs one a minute for each reason.
func (d *Limiter) refused(why telemetry.ConnRefusal, at net.Addr, remote string, err error) {
	d.metrics.Count(why)
	d.mu.Lock()
	q := d.logged[why]
	if q == nil {
		q = new(quiet)
		d.logged[why] = q
	}
	tell, more := q.tell(time.Now())
	d.mu.Unlock()
	if tell {
		d.log.Warn("connection turned away", "at", at, "from", remote, "why", string(why), "error", err, "more", more)
	}
}

// failing logs once a minute that no connection can be accepted.
func (d *Limiter) failing(at net.Addr, err error) {
	d.mu.Lock()
	tell, more := d.errors.tell(time.Now())
	d.mu.Unlock()
	if tell {
		d.log.Warn("cannot accept connections, trying again; if files ran out, raise LimitNOFILE (ulimit -n)", "at", at,
			"error", err, "more", more)
	}
}
