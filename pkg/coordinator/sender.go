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
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/scheduler"
)

// Sender is what the connection of an announce says about its other end.
type Sender struct {
	// Remote is its network address, an IP.
	Remote string
	// Secure says that it showed a certificate, Proved which host that one names, and Err why
	// it names none.
	Secure bool
	Proved host.ID
	Err    error
	// direct says that there was no connection: the caller is this process.
	direct bool
}

type senderKey struct{}

// withSender is a request's context with its sender.
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

// senderOf is the sender in a context. An announce without a connection comes from the address that
// the host names.
func senderOf(ctx context.Context, h host.Host) Sender {
	if s, ok := ctx.Value(senderKey{}).(Sender); ok {
		return s
	}
	ip, _, _ := net.SplitHostPort(h.Addr)
	return Sender{Remote: ip, direct: true}
}

// source is what bounds count by: an IPv4 address, or the /64 network of an IPv6 address, in which one
// machine has as many addresses as it likes.
func (s Sender) source() string {
	ip, err := netip.ParseAddr(s.Remote)
	if ip = ip.Unmap(); err != nil || ip.Is4() || ip.IsLoopback() {
		return s.Remote
	}
	network, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return s.Remote
	}
	return network.String()
}

// checkSender refuses a host that speaks for another.
func (c *Coordinator) checkSender(h host.Host, from Sender) error {
	switch {
	case from.Secure && from.Err != nil:
		return &RequestError{http.StatusForbidden, from.Err.Error()}
	case from.Secure && from.Proved != h.ID:
		const text = "host %s at %s speaks for host %s: a host announces itself alone"
		return &RequestError{http.StatusForbidden, fmt.Sprintf(text, from.Proved, from.Remote, h.ID)}
	case h.ID == c.cfg.Host.ID && !from.direct:
		return asRequestError(&scheduler.InUseError{ID: h.ID, Addr: c.cfg.Host.Addr})
	}
	return nil
}

// asRequestError gives an ID in use a status of its own, so that the host takes another ID.
func asRequestError(err error) error {
	var used *scheduler.InUseError
	if errors.As(err, &used) {
		return &RequestError{api.StatusInUse, used.Error()}
	}
	return err
}

// Refusal is why an announce, or a part of it, was not taken in.
type Refusal string

// The refusals.
const (
	RefusedForeign Refusal = "foreign" // it speaks for another host than its certificate
	RefusedInUse   Refusal = "in_use"  // its ID is another live host's
	RefusedClock   Refusal = "clock"   // its clock is too far from this one's
	RefusedFull    Refusal = "full"    // a bound admits no other host
	RefusedTasks   Refusal = "tasks"   // tasks beyond a bound were forgotten
	RefusedBroken  Refusal = "broken"  // it is no announce
)

// offendersMax bounds the offenders in a status, offenderEvery how often one is logged, and
// offenderFor is how long it stays in the status after its last offence.
const (
	offendersMax  = 64
	offenderEvery = time.Minute
	offenderFor   = 10 * time.Minute
)

// offenders are the hosts whose last announces were refused.
type offenders struct {
	// mu is held to find or count one.
	mu   sync.Mutex
	list map[offence]*offender
}

type offence struct {
	id     host.ID
	remote string
	why    Refusal
}

type offender struct {
	api.Offender
	logged   time.Time
	unlogged int
}

// note counts an offence and says whether to log it, and how many were not logged since the last line.
func (o *offenders) note(now time.Time, what offence, reason string) (log bool, more int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.list[what]
	if e == nil {
		if o.list == nil {
			o.list = map[offence]*offender{}
		}
		if len(o.list) >= offendersMax {
			var oldest offence
			for k, v := range o.list {
				if oldest == (offence{}) || v.Last.Before(o.list[oldest].Last) {
					oldest = k
				}
			}
			// A host that invents names does not get an entry for each of them.
			if now.Sub(o.list[oldest].Last) < offenderEvery {
				what = offence{remote: what.remote, why: what.why}
				if e = o.list[what]; e == nil {
					delete(o.list, oldest)
				}
			} else {
				delete(o.list, oldest)
			}
		}
		if e == nil {
			e = &offender{Offender: api.Offender{ID: what.id, Addr: what.remote}}
			o.list[what] = e
		}
	}
	e.Times++
	e.Last, e.Reason = now, reason
	if log = now.Sub(e.logged) >= offenderEvery; !log {
		e.unlogged++
		return false, 0
	}
	more, e.logged, e.unlogged = e.unlogged, now, 0
	return true, more
}

// Offenders lists the hosts whose announces were refused within ten minutes, the newest first.
func (c *Coordinator) Offenders(now time.Time) []api.Offender {
	o := &c.offenders
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.list, func(_ offence, e *offender) bool { return now.Sub(e.Last) > offenderFor })
	out := make([]api.Offender, 0, len(o.list))
	for _, e := range o.list {
		out = append(out, e.Offender)
	}
	slices.SortFunc(out, func(a, b api.Offender) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(string(a.ID), string(b.ID)),
			strings.Compare(a.Addr, b.Addr))
	})
	return out
}

// refused counts an announce that was refused, and names its sender.
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
	c.offended(h, from.Remote, why, err.Error())
}

// crowded counts tasks that a bound kept out, and names the host with most tasks.
func (c *Coordinator) crowded(a scheduler.Answer, source string) {
	const text = "%d tasks were forgotten: this host, or all hosts at its address, announce more than the owner " +
		"remembers"
	c.offended(a.Greedy, source, RefusedTasks, fmt.Sprintf(text, a.Forgotten))
}

func (c *Coordinator) offended(h host.Host, remote string, why Refusal, reason string) {
	if c.cfg.Refused != nil {
		c.cfg.Refused(why)
	}
	id := h.ID
	if _, err := host.ParseID(string(id)); err != nil {
		id = ""
	}
	log, more := c.offenders.note(time.Now(), offence{id, remote, why}, reason)
	if !log {
		return
	}
	c.log.Log(context.Background(), slog.LevelWarn, "announce refused",
		"host", id, "name", h.Name[:min(len(h.Name), nameMax)], "addr", h.Addr[:min(len(h.Addr), nameMax)],
		"from", remote, "why", string(why), "error", reason, "more", more)
}
