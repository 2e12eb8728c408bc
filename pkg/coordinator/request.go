package coordinator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
)

// Bounds on the parts of a request; package api bounds the whole.
const (
	entryMax  = 256 << 10 // bytes of one entry: a spec may carry tokens and signed URLs
	nameMax   = 255       // bytes of a host's address, name or zone
	headerMax = 64        // headers or media types in a spec
)

// RequestError is the reason why a whole announce was refused.
type RequestError struct {
	// Status is the HTTP status of the refusal.
	Status int
	Reason string
}

func (e *RequestError) Error() string { return "announce refused: " + e.Reason }

func badRequest(format string, args ...any) error {
	return &RequestError{Status: http.StatusBadRequest, Reason: fmt.Sprintf(format, args...)}
}

// checkRequest refuses requests that no honest host sends.
func checkRequest(r api.AnnounceRequest) error {
	if r.Version < 1 || r.Version > api.Version+1 {
		return badRequest("version %d of the control wire is not supported; this owner supports %d", r.Version,
			api.Version)
	}
	if _, err := host.ParseID(string(r.Host.ID)); err != nil {
		return badRequest("%v", err)
	}
	for _, text := range []string{r.Host.Addr, r.Host.Name, r.Host.Zone} {
		if len(text) > nameMax {
			return badRequest("address, name or zone of host %s has %d bytes, more than %d",
				r.Host.ID.Short(), len(text), nameMax)
		}
		// They come to the terminals of operators.
		if strings.ContainsFunc(text, unicode.IsControl) {
			return badRequest("address, name or zone of host %s has a control character: %q", r.Host.ID.Short(), text)
		}
	}
	name, port, err := net.SplitHostPort(r.Host.Addr)
	if number, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || name == "" || number == 0 {
		return badRequest("host %s has the address %q, which is not host:port", r.Host.ID.Short(), r.Host.Addr)
	}
	if len(r.PurgeMark) > nameMax || len(r.PurgeFailures) > api.PurgeFailuresMax {
		return badRequest("host %s sent a purge mark of %d bytes and %d purge failures; the bounds are %d and %d",
			r.Host.ID.Short(), len(r.PurgeMark), len(r.PurgeFailures), nameMax, api.PurgeFailuresMax)
	}
	if len(r.Preheats) > preheat.ReportsMax || len(r.Labels) > preheat.ListMax {
		return badRequest("host %s sent %d preheat reports and %d labels; the bounds are %d and %d", r.Host.ID.Short(),
			len(r.Preheats), len(r.Labels), preheat.ReportsMax, preheat.ListMax)
	}
	for k, v := range r.Labels {
		if len(k) > preheat.WordMax || len(v) > preheat.WordMax || strings.ContainsFunc(k+v, unicode.IsControl) {
			return badRequest("host %s has a label of more than %d bytes or with a control character", r.Host.ID.Short(),
				preheat.WordMax)
		}
	}
	if len(r.Entries) > api.EntriesMax {
		return badRequest("%d entries, more than %d in one announce", len(r.Entries), api.EntriesMax)
	}
	return nil
}

// checkEntry refuses entries that no honest host sends. It accepts an unknown event, which comes from a later version
// and gets an empty assignment.
func checkEntry(e api.Entry) error {
	if _, err := task.ParseID(string(e.Task)); err != nil {
		return err
	}
	if e.Have < 0 || e.Have > piece.CountMax {
		return fmt.Errorf("task %s cannot have %d pieces", e.Task.Short(), e.Have)
	}
	if len(e.Silent) > api.NeighboursIn || len(e.Left) > api.NeighboursIn {
		return fmt.Errorf("task %s: %d silent neighbours and %d that left, at most %d of each are taken",
			e.Task.Short(), len(e.Silent), len(e.Left), api.NeighboursIn)
	}
	if len(e.Seeds) > api.SeedsMax {
		return fmt.Errorf("task %s: %d seeds, at most %d are taken", e.Task.Short(), len(e.Seeds), api.SeedsMax)
	}
	if len(e.Windows) > api.WindowsMax {
		return fmt.Errorf("task %s: %d windows, at most %d are taken", e.Task.Short(), len(e.Windows), api.WindowsMax)
	}
	for _, w := range e.Windows {
		if w.Offset < 0 || w.Length <= 0 {
			return fmt.Errorf("task %s: a window of %d bytes at %d", e.Task.Short(), w.Length, w.Offset)
		}
	}
	if s := e.Spec; s != nil {
		// A host that wants one task must not make the owner fetch another one.
		if s.ID != e.Task {
			return fmt.Errorf("task %s comes with the spec of another task", e.Task.Short())
		}
		if len(s.Header) > headerMax || len(s.Accept) > headerMax {
			return fmt.Errorf("task %s: its spec has %d headers and %d media types, more than %d",
				e.Task.Short(), len(s.Header), len(s.Accept), headerMax)
		}
		if s.Length < 0 || s.Length > piece.LengthMax {
			return fmt.Errorf("task %s cannot be %d bytes long", e.Task.Short(), s.Length)
		}
	}
	return nil
}

// decodeRequest decodes an announce of at most [api.AnnounceMax] bytes and [api.EntriesMax] entries.
func decodeRequest(r io.Reader) (api.AnnounceRequest, error) {
	body, err := io.ReadAll(io.LimitReader(r, api.AnnounceMax+1))
	if err != nil {
		return api.AnnounceRequest{}, badRequest("reading its body: %v", err)
	}
	if len(body) > api.AnnounceMax {
		reason := fmt.Sprintf("more than %d bytes", api.AnnounceMax)
		return api.AnnounceRequest{}, &RequestError{http.StatusRequestEntityTooLarge, reason}
	}
	var wire struct {
		api.AnnounceRequest
		Entries       entries       `json:"entries"`
		PurgeFailures purgeFailures `json:"unfollowed"`
		Preheats      preheats      `json:"preheats"`
	}
	if err := json.Unmarshal(body, &wire); err != nil {
		if refused := (*RequestError)(nil); errors.As(err, &refused) {
			return api.AnnounceRequest{}, refused
		}
		return api.AnnounceRequest{}, badRequest("%v", err)
	}
	wire.PurgeFailures = slices.DeleteFunc(wire.PurgeFailures, func(f api.PurgeFailure) bool {
		_, err := task.ParseID(string(f.Task))
		return err != nil
	})
	for i, f := range wire.PurgeFailures {
		wire.PurgeFailures[i].Why = api.OneLine(f.Why[:min(len(f.Why), api.PurgeFailureWhyMax)])
	}
	wire.Preheats = slices.DeleteFunc(wire.Preheats, func(r preheat.Report) bool { return r.Check() != nil })
	for i, r := range wire.Preheats {
		wire.Preheats[i].Error = api.OneLine(r.Error)
	}
	wire.AnnounceRequest.Preheats = wire.Preheats
	wire.AnnounceRequest.Entries, wire.AnnounceRequest.PurgeFailures = wire.Entries, wire.PurgeFailures
	return wire.AnnounceRequest, nil
}

// entries checks the length of a list before it decodes the elements.
type entries []api.Entry

func (list *entries) UnmarshalJSON(b []byte) error {
	all, err := api.UnmarshalList[wireEntry](b, api.EntriesMax, entryMax)
	if err != nil {
		return badRequest("entries: %v", err)
	}
	*list = make([]api.Entry, len(all))
	for i, w := range all {
		e := w.Entry
		if e.Silent, err = few[host.ID](w.Silent, api.NeighboursIn); err == nil {
			e.Left, err = few[host.ID](w.Left, api.NeighboursIn)
		}
		if err == nil {
			e.Windows, err = few[api.Window](w.Windows, api.WindowsMax)
		}
		if err != nil {
			return badRequest("entries: element %d: %v", i, err)
		}
		(*list)[i] = e
	}
	return nil
}

// wireEntry is an entry whose lists are decoded later, because an element of three bytes takes 32 as a Go value.
type wireEntry struct {
	api.Entry
	Silent  json.RawMessage `json:"silent"`
	Left    json.RawMessage `json:"left"`
	Windows json.RawMessage `json:"windows"`
}

// few decodes a list of an entry. A list of more than most elements becomes one of most+1 empty ones, so that
// checkEntry refuses this entry alone.
func few[T any](b json.RawMessage, most int) ([]T, error) {
	if b == nil {
		return nil, nil
	}
	list, err := api.UnmarshalList[T](b, most, entryMax)
	if long := (*api.LongListError)(nil); errors.As(err, &long) {
		return make([]T, most+1), nil
	}
	return list, err
}

// purgeFailures checks the length of a list before it decodes the elements.
type purgeFailures []api.PurgeFailure

func (list *purgeFailures) UnmarshalJSON(b []byte) (err error) {
	if *list, err = api.UnmarshalList[api.PurgeFailure](b, api.PurgeFailuresMax, 8*api.PurgeFailureWhyMax); err != nil {
		return badRequest("purge failures: %v", err)
	}
	return nil
}

// preheats checks the length of a list before it decodes the elements.
type preheats []preheat.Report

func (list *preheats) UnmarshalJSON(b []byte) (err error) {
	if *list, err = api.UnmarshalList[preheat.Report](b, preheat.ReportsMax, preheat.ReportMax); err != nil {
		return badRequest("preheat reports: %v", err)
	}
	return nil
}

// HandleAnnounce serves [api.PathAnnounce]: a POST with an [api.AnnounceRequest]. The response is an
// [api.AnnounceResponse], or {"error": …} with a 4xx or 5xx status.
func (c *Coordinator) HandleAnnounce(w http.ResponseWriter, r *http.Request) {
	response, err := c.handle(w, r)
	status, body := http.StatusOK, any(response)
	if err != nil {
		status = http.StatusInternalServerError
		if refused := (*RequestError)(nil); errors.As(err, &refused) {
			status = refused.Status
		} else if errors.Is(err, scheduler.ErrFull) {
			status = http.StatusServiceUnavailable
		}
		body = map[string]string{"error": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set(api.HeaderClock, c.cfg.Now().UTC().Format(time.RFC3339Nano))
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		c.log.Debug("cannot send the response to an announce", "remote", r.RemoteAddr, "error", err)
	}
}

func (c *Coordinator) handle(w http.ResponseWriter, r *http.Request) (api.AnnounceResponse, error) {
	if r.Method != http.MethodPost {
		return api.AnnounceResponse{}, &RequestError{http.StatusMethodNotAllowed,
			"send it with POST, not with " + r.Method}
	}
	if r.ContentLength > api.AnnounceMax {
		reason := fmt.Sprintf("%d bytes, more than %d", r.ContentLength, api.AnnounceMax)
		return api.AnnounceResponse{}, &RequestError{http.StatusRequestEntityTooLarge, reason}
	}
	ctx := withSender(r)
	from := senderOf(ctx, host.Host{})
	size := r.ContentLength
	if size < 0 {
		size = api.AnnounceMax // it may have that many
	}
	leave := c.bodies.enter(from.source(), size)
	if leave == nil {
		err := fmt.Errorf("%w: too many bytes of announces are read now, in all or from this address", scheduler.ErrFull)
		c.refused(host.Host{ID: from.Proved}, from, err)
		return api.AnnounceResponse{}, err
	}
	defer leave()
	// With this reader, the server also closes a connection that sends more.
	request, err := decodeRequest(http.MaxBytesReader(w, r.Body, api.AnnounceMax+1))
	if err != nil {
		return api.AnnounceResponse{}, err
	}
	return c.ServeAnnounce(ctx, request)
}

// bodiesMax bounds the bytes of announces that are read and answered at the same time, bodiesMaxEach those of one
// address: a member may open many connections. Decoded, they take some times as much. An inventory comes in parts of
// some 80 KiB. Loopback may use all of bodiesMax.
const (
	bodiesMax     = 1 << 30
	bodiesMaxEach = 128 << 20
)

// bodies counts the bytes of announces that are read and answered now. The zero value is ready.
type bodies struct {
	// mu is held to count, never while a body is read.
	mu   sync.Mutex
	all  int64
	from map[string]int64 // by source
}

// enter counts an announce and returns what ends it, nil if a bound admits no more bytes.
func (b *bodies) enter(source string, size int64) (leave func()) {
	ip, err := netip.ParseAddr(source)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all+size > bodiesMax || b.from[source]+size > bodiesMaxEach && (err != nil || !ip.IsLoopback()) {
		return nil
	}
	if b.from == nil {
		b.from = map[string]int64{}
	}
	b.all += size
	b.from[source] += size
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.all -= size
		if b.from[source] -= size; b.from[source] <= 0 {
			delete(b.from, source)
		}
	}
}
