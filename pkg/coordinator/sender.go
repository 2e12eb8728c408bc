package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/scheduler"
)

// Sender identifies the other end of an announce's connection.
type Sender struct {
	// Remote is its IP address.
	Remote string
	// Secure is true if it showed a certificate. Proved is the host that the certificate names, Err why it names none.
	Secure bool
	Proved host.ID
	Err    error
	// direct is true if the caller is this process, without a connection.
	direct bool
}

type senderKey struct{}

// withSender returns a request's context with its sender.
func withSender(r *http.Request) context.Context {
	s := Sender{Remote: r.RemoteAddr}
	if ip, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		s.Remote = ip
	}
	if r.TLS != nil {
		s.Secure = true
		s.Proved, s.Err = identity.HostOfTLS(*r.TLS)
	}
	return context.WithValue(r.Context(), senderKey{}, s)
}

// senderOf returns the sender in a context. Without a connection, it is the address that the host names.
func senderOf(ctx context.Context, h host.Host) Sender {
	if s, ok := ctx.Value(senderKey{}).(Sender); ok {
		return s
	}
	ip, _, _ := net.SplitHostPort(h.Addr)
	return Sender{Remote: ip, direct: true}
}

// source returns the network that bounds count by.
func (s Sender) source() string { return host.Network(s.Remote) }

// checkSender refuses a host that announces for another one.
func (c *Coordinator) checkSender(h host.Host, from Sender) error {
	switch {
	case from.Secure && from.Err != nil:
		return &RequestError{http.StatusForbidden, from.Err.Error()}
	case from.Secure && from.Proved != h.ID:
		const text = "host %s at %s announces for host %s: a host may announce only for itself"
		return &RequestError{http.StatusForbidden, fmt.Sprintf(text, from.Proved, from.Remote, h.ID)}
	case h.ID == c.cfg.Host.ID && !from.direct:
		return asRequestError(&scheduler.InUseError{ID: h.ID, Addr: c.cfg.Host.Addr})
	}
	return nil
}

// asRequestError gives an ID in use a status of its own, so that the host takes a new ID.
func asRequestError(err error) error {
	var used *scheduler.InUseError
	if errors.As(err, &used) {
		return &RequestError{api.StatusInUse, used.Error()}
	}
	return err
}

// Refusal is the reason why an owner refused an announce or a part of it.
type Refusal string

// The reasons, which are also values of a metric's label.
const (
	RefusedForeign Refusal = "foreign" // it announces for another host than its certificate names
	RefusedInUse   Refusal = "in_use"  // its ID is another live host's
	RefusedClock   Refusal = "clock"   // its clock differs too much from this owner's
	RefusedFull    Refusal = "full"    // a bound admits no other host
	RefusedTasks   Refusal = "tasks"   // the owner forgot tasks beyond a bound
	RefusedBroken  Refusal = "broken"  // it is not a valid announce
)

// refusedMax bounds the refused hosts in a status, refusedEvery is the interval of log lines about one of them, and
// refusedFor is how long it stays in the status after its last refused announce.
const (
	refusedMax   = 64
	refusedEvery = time.Minute
	refusedFor   = 10 * time.Minute
)

// refusedHosts are the hosts whose announces were refused lately.
type refusedHosts struct {
	// mu is held to find or count one.
	mu   sync.Mutex
	list map[refusalKey]*refusedHost
}

type refusalKey struct {
	id     host.ID
	remote string
	why    Refusal
}

type refusedHost struct {
	api.RefusedHost
	logged   time.Time
	unlogged int
}

// note counts a refused announce. It returns whether to log it, and how many were not logged since the last line.
func (o *refusedHosts) note(now time.Time, what refusalKey, reason string) (log bool, more int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.list[what]
	if e == nil {
		if o.list == nil {
			o.list = map[refusalKey]*refusedHost{}
		}
		if len(o.list) >= refusedMax {
			var oldest refusalKey
			for k, v := range o.list {
				if oldest == (refusalKey{}) || v.Last.Before(o.list[oldest].Last) {
					oldest = k
				}
			}
			// A host that announces with many IDs gets one entry, without an ID.
			if now.Sub(o.list[oldest].Last) < refusedEvery {
				what = refusalKey{remote: what.remote, why: what.why}
				if e = o.list[what]; e == nil {
					delete(o.list, oldest)
				}
			} else {
				delete(o.list, oldest)
			}
		}
		if e == nil {
			e = &refusedHost{RefusedHost: api.RefusedHost{ID: what.id, Addr: what.remote}}
			o.list[what] = e
		}
	}
	e.Times++
	e.Last, e.Reason = now, reason
	if log = now.Sub(e.logged) >= refusedEvery; !log {
		e.unlogged++
		return false, 0
	}
	more, e.logged, e.unlogged = e.unlogged, now, 0
	return true, more
}

// RefusedHosts lists the hosts whose announces were refused within ten minutes, the latest first.
func (c *Coordinator) RefusedHosts(now time.Time) []api.RefusedHost {
	o := &c.refusals
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.list, func(_ refusalKey, e *refusedHost) bool { return now.Sub(e.Last) > refusedFor })
	out := make([]api.RefusedHost, 0, len(o.list))
	for _, e := range o.list {
		out = append(out, e.RefusedHost)
	}
	slices.SortFunc(out, func(a, b api.RefusedHost) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(string(a.ID), string(b.ID)),
			strings.Compare(a.Addr, b.Addr))
	})
	return out
}

// refused counts a refused announce and logs its sender.
func (c *Coordinator) refused(h host.Host, from Sender, err error) {
	why := RefusedBroken
	var request *RequestError
	switch {
	case errors.Is(err, scheduler.ErrFull):
		why = RefusedFull
	case errors.As(err, &request) && request.Status == api.StatusInUse:
		why = RefusedInUse
	case errors.As(err, &request) && request.Status == api.StatusClock:
		why = RefusedClock
	case errors.As(err, &request) && request.Status == http.StatusForbidden:
		why = RefusedForeign
	}
	c.logRefusal(h, from.Remote, why, err.Error())
}

// forgotten counts tasks beyond a bound, and logs the host with most tasks.
func (c *Coordinator) forgotten(a scheduler.Answer, source string) {
	const text = "%d tasks were forgotten: this host, or all hosts at its address, announce more tasks than the " +
		"owner remembers"
	c.logRefusal(a.Greedy, source, RefusedTasks, fmt.Sprintf(text, a.Forgotten))
}

func (c *Coordinator) logRefusal(h host.Host, remote string, why Refusal, reason string) {
	if c.cfg.Refused != nil {
		c.cfg.Refused(why)
	}
	id := h.ID
	if _, err := host.ParseID(string(id)); err != nil {
		id = ""
	}
	log, more := c.refusals.note(time.Now(), refusalKey{id, remote, why}, reason)
	if !log {
		return
	}
	c.log.Log(context.Background(), slog.LevelWarn, "announce refused",
		"host", id, "name", h.Name[:min(len(h.Name), nameMax)], "addr", h.Addr[:min(len(h.Addr), nameMax)],
		"from", remote, "why", string(why), "error", reason, "more", more)
}
