package announce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/owners"
)

// sender sends to one owner. Only its goroutine, [Client.serve], sends; Client.mu guards all its fields but addr and
// wake.
type sender struct {
	addr string
	// wake makes the goroutine look for something to send.
	wake chan struct{}

	queue []*call
	// resync means that the owner lacks the host's whole inventory; backlog is the part of it that the sender has not sent
	// yet.
	resync  bool
	backlog []api.Entry
	// more means that the owner received entries as one of a task's first two while another owner was out: it may count
	// this host for tasks that it no longer owns, and must receive their end.
	more bool
	// skew is by how much the owner's clock was ahead of this host's in its last reply, in whole
	// seconds; logged is the skew that the log last showed.
	skew, logged time.Duration
	// why is the reason of the failures that the log last showed, empty while the owner answers; whyLogged is when.
	why       string
	whyLogged time.Time
	// refusedAt is when the log last showed a refused entry.
	refusedAt time.Time
}

// reasonPause is how long after a line of the log an owner's next reason can follow.
const reasonPause = 10 * time.Second

// reasonOf returns an error's text without the parts that differ from one announce to the next: the number of entries,
// a local port, the difference of clocks.
func reasonOf(err error) string {
	var network *net.OpError
	switch cause := errors.Unwrap(err); {
	case identity.OfClocks(err):
		return "clocks"
	case errors.As(err, &network):
		return network.Op + " " + network.Err.Error()
	case cause != nil:
		return cause.Error()
	}
	return err.Error()
}

// newReason notes why the owner fails, and reports whether the log must show it because it is another reason than
// before. began is true if the owner began to fail, which the log shows anyway. The client's mu is held.
func (s *sender) newReason(now time.Time, err error, began bool) bool {
	why := reasonOf(err)
	if began || s.why == "" || why == s.why || now.Sub(s.whyLogged) < reasonPause {
		if began {
			s.why, s.whyLogged = why, now
		}
		return false
	}
	s.why, s.whyLogged = why, now
	return true
}

// call is an entry on its way; done is nil when no caller waits for the assignment.
type call struct {
	entry api.Entry
	done  chan result
}

type result struct {
	assignment api.Assignment
	err        error
}

func newSender(addr string) *sender {
	// A new owner knows nothing of this host, and the host may hold a lot.
	return &sender{addr: addr, wake: make(chan struct{}, 1), resync: true}
}

// causeOf distinguishes refusals, which a host or a network sends, from silence.
func causeOf(err error) owners.Cause {
	var dns *net.DNSError
	switch {
	case identity.OfClocks(err):
		return owners.Clock
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH),
		errors.Is(err, syscall.ENETUNREACH),
		errors.As(err, &dns) && dns.IsNotFound:
		return owners.Refusal
	}
	return owners.Silence
}

// enqueue puts a call in the queue. Client.mu is held.
func (s *sender) enqueue(q *call) {
	s.queue = append(s.queue, q)
	s.poke()
}

// poke makes the sender look whether there is something to send, and announce in any case.
func (s *sender) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fail answers everything in the queue with an error. Client.mu is held.
func (s *sender) fail(err error) {
	for _, q := range s.queue {
		q.answer(result{err: err})
	}
	s.queue = nil
}

// answer ends the wait of the caller, if there is one; it never blocks, since done holds one result.
// Client.mu may be held.
func (q *call) answer(r result) {
	select {
	case q.done <- r:
	default:
	}
}

// batch holds the entries of one announce.
type batch struct {
	calls   []*call
	entries []api.Entry
	// begins means that the inventory begins here, which answers an owner that requested it.
	begins bool
}

// serve sends to one owner until ctx ends. While one announce is on its way, other entries gather
// in the queue and go together in the next: nothing waits for a timer.
func (c *Client) serve(ctx context.Context, s *sender) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		for {
			timer.Reset(c.send(ctx, s, c.gather(s)))
			if ctx.Err() != nil || !c.pending(s) {
				break
			}
		}
	}
}

// answers reports whether an owner did not fail its last announce. mu is held.
func (c *Client) answers(s *sender) bool {
	return c.senders[s.addr] == s && c.view.State(c.cfg.Lag.Now(), s.addr) <= owners.Alive
}

// pending reports whether there is more to send to an owner that answers.
func (c *Client) pending(s *sender) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(s.queue) > 0 || c.answers(s) && (s.resync || len(s.backlog) > 0)
}

// gather takes the next batch: entries whose senders wait, otherwise a part of the inventory,
// otherwise nothing, which is a heartbeat.
func (c *Client) gather(s *sender) (b batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mayInline := 0
	for len(s.queue) > 0 && len(b.calls) < batchMax && mayInline < inlineBatch {
		q := s.queue[0]
		s.queue = s.queue[1:]
		if q.entry.Event == api.Started {
			mayInline++
		}
		b.calls = append(b.calls, q)
		b.entries = append(b.entries, q.entry)
	}
	if len(b.calls) > 0 || !c.answers(s) {
		return b
	}
	if s.resync {
		s.resync, b.begins = false, true
		c.mu.Unlock()
		held := c.cfg.Inventory() // may read a disk
		c.mu.Lock()
		s.backlog = slices.DeleteFunc(slices.Clone(held), func(e api.Entry) bool {
			return c.downloads[e.Task] != nil || !slices.Contains(c.firstTwo(e.Task), s.addr)
		})
	}
	n := min(len(s.backlog), batchMax)
	b.entries, s.backlog = s.backlog[:n], s.backlog[n:]
	return b
}

// send sends one batch and hands out the assignments. It returns when to announce again at the
// latest.
func (c *Client) send(ctx context.Context, s *sender, b batch) time.Duration {
	c.mu.Lock()
	now := c.cfg.Lag.Now()
	budget, joined := c.view.Budget(now), c.view.KnewOwners(now)
	c.mu.Unlock()
	bounded, cancel := c.cfg.Lag.WithTimeout(ctx, budget, nil)
	request := api.AnnounceRequest{
		Version: api.Version, Host: c.cfg.Host, Generation: c.cfg.Generation, Entries: b.entries,
		Standby: c.cfg.Standby,
		Joined:  joined,
		Clock:   c.cfg.Now(),
	}
	if c.cfg.Purges != nil {
		c.cfg.Purges.Fill(s.addr, &request)
	}
	if c.cfg.Preheats != nil {
		c.cfg.Preheats.Fill(s.addr, &request)
	}
	response, err := c.post(bounded, s.addr, request)
	cancel()
	var refused *refusedError
	if errors.As(err, &refused) {
		if len(b.entries) > 0 {
			return c.sendApart(ctx, s, b, err)
		}
		err = errors.New(refused.message) // the owner refused this host, and no entry that waits
	}
	if err != nil {
		if errors.Is(err, ErrInUse) && c.cfg.InUse != nil {
			c.cfg.InUse(err)
		}
		return c.failed(ctx, s, b, err)
	}
	c.mu.Lock()
	for i, q := range b.calls {
		q.answer(result{assignment: response.Assignments[i]})
	}
	if response.Resync {
		s.more = false
		// The owner is new or was restarted: it needs the inventory, and with the next
		// announce of each download its spec.
		c.downloads.disown(s.addr)
		if !b.begins && !s.resync {
			s.resync, s.backlog = true, nil
		}
	}
	var changes owners.Changes
	if c.senders[s.addr] == s {
		s.why = ""
		changes = c.apply(owners.Replied{From: s.addr, Owners: response.Owners,
			Standbys: response.Standbys, Early: response.EarlyStandbys})
		s.more = s.more || len(b.entries) > 0 && c.view.AnyFails()
	}
	c.mu.Unlock()
	c.report(s.addr, changes, nil)
	c.learn(ctx, s, c.cfg.Purges, response.PurgeMark)
	c.learn(ctx, s, c.cfg.Preheats, response.PreheatMark)
	if response.IntervalMillis <= 0 {
		return intervalFirst
	}
	return time.Duration(response.IntervalMillis) * time.Millisecond
}

// sendApart handles a batch that an owner answered and refused. It sends the halves of the batch, and so finds the
// entry that the owner refuses; others are not lost with it, and the owner counts as one that answers. An owner that
// refuses an announce without entries, too, refuses this host: it fails.
func (c *Client) sendApart(ctx context.Context, s *sender, b batch, err error) time.Duration {
	interval := c.send(ctx, s, batch{begins: b.begins})
	c.mu.Lock()
	if !c.answers(s) {
		for _, q := range b.calls {
			q.answer(result{err: errors.New(err.Error())}) // the owner refused this host, and not an entry
		}
		c.mu.Unlock()
		return interval
	}
	c.mu.Unlock()
	if n := len(b.entries) / 2; n > 0 {
		first, second := batch{entries: b.entries[:n], begins: b.begins}, batch{entries: b.entries[n:]}
		if len(b.calls) > 0 { // one for each entry
			first.calls, second.calls = b.calls[:n], b.calls[n:]
		}
		return min(c.send(ctx, s, first), c.send(ctx, s, second))
	}
	c.mu.Lock()
	now := time.Now()
	shows := now.Sub(s.refusedAt) >= reasonPause // a host may have many such entries
	if shows {
		s.refusedAt = now
	}
	for _, q := range b.calls {
		q.answer(result{err: err})
	}
	c.mu.Unlock()
	if shows {
		c.log.Warn("owner refuses an entry, so this host leads the task by itself", "owner", s.addr,
			"task", b.entries[0].Task.Short(), "event", b.entries[0].Event, "error", err)
	}
	return interval
}

// learn fetches an owner's orders, and then announces at once.
func (c *Client) learn(ctx context.Context, s *sender, orders Purges, mark string) {
	if orders == nil {
		return
	}
	transport := c.cfg.Client.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	at := apiclient.Client{Base: c.cfg.Scheme + "://" + s.addr, Transport: transport}
	if orders.Learn(ctx, s.addr, mark, at) {
		s.poke()
	}
}

// failed fails a batch and everything in the queue, and returns when to try the owner again.
func (c *Client) failed(ctx context.Context, s *sender, b batch, err error) time.Duration {
	c.mu.Lock()
	for _, q := range b.calls {
		q.answer(result{err: err})
	}
	s.fail(err)
	if ctx.Err() != nil || c.senders[s.addr] != s {
		c.mu.Unlock()
		return 0 // this host ends it; the owner did not fail
	}
	changes := c.apply(owners.Failed{From: s.addr, Cause: causeOf(err), Err: err})
	another := s.newReason(time.Now(), err, changes.Suspected)
	// The owner may have lost its state when it answers again.
	s.resync, s.backlog = true, nil
	c.downloads.disown(s.addr)
	c.mu.Unlock()
	c.report(s.addr, changes, err)
	if another {
		c.log.Warn("owner still does not answer, now for another reason", "owner", s.addr, "error", err)
	}
	return changes.Retry
}

// leave announces to all owners that have ever answered that this host leaves.
func (c *Client) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	c.mu.Lock()
	met := c.view.Met()
	for _, s := range c.senders {
		s.fail(ErrStopped)
	}
	c.mu.Unlock()
	request := api.AnnounceRequest{Version: api.Version, Host: c.cfg.Host, Generation: c.cfg.Generation, Leaving: true}
	var leaving sync.WaitGroup
	for _, addr := range met {
		leaving.Go(func() {
			if _, err := c.post(ctx, addr, request); err != nil {
				c.log.Debug("owner does not know that this host leaves", "owner", addr, "error", err)
			}
		})
	}
	leaving.Wait()
}

// post makes one request.
func (c *Client) post(ctx context.Context, addr string, r api.AnnounceRequest) (api.AnnounceResponse, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("encoding %d entries for owner %s: %w", len(r.Entries), addr, err)
	}
	at := c.cfg.Scheme + "://" + addr + api.PathAnnounce
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("announcing %d entries to owner %s: %w", len(r.Entries), addr, err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.cfg.Client.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the URL, which says nothing more
		}
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			err = context.Cause(ctx) // a time-out of the lag meter cancels
		}
		// In TLS 1.3 the other end's refusal comes with the first read.
		err = identity.Explain(err)
		return api.AnnounceResponse{}, fmt.Errorf("announcing %d entries to owner %s: %w", len(r.Entries), addr, err)
	}
	defer answer.Body.Close()
	if err := c.compareClocks(addr, answer.Header); err != nil && !r.Leaving {
		// The connection is kept: a new one would fail, and over this one the owner sees the clock,
		// too, and names this host to none.
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, api.AnnounceMax))
		return api.AnnounceResponse{}, fmt.Errorf("announcing %d entries to owner %s: %w", len(r.Entries), addr, err)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, api.AnnounceMax+1))
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("reading the answer of owner %s: %w", addr, err)
	}
	words := api.OneLine(string(bytes.TrimSpace(text[:min(len(text), 400)])))
	if answer.StatusCode == api.StatusInUse {
		return api.AnnounceResponse{}, fmt.Errorf("%w: owner %s: %s", ErrInUse, addr, words)
	}
	if answer.StatusCode == http.StatusBadRequest || answer.StatusCode == http.StatusRequestEntityTooLarge {
		return api.AnnounceResponse{}, &refusedError{fmt.Sprintf("owner %s answered %s: %s", addr, answer.Status, words)}
	}
	if answer.StatusCode != http.StatusOK {
		return api.AnnounceResponse{}, fmt.Errorf("owner %s answered %s: %s", addr, answer.Status, words)
	}
	response, err := decodeResponse(text, len(r.Entries))
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("answer of owner %s: %w", addr, err)
	}
	return response, nil
}

// refusedError is the answer of an owner that refused an announce: the owner is alive.
type refusedError struct{ message string }

func (e *refusedError) Error() string { return e.message }

// assignmentMax bounds one assignment on the wire, in bytes: inline bytes, an origin's refusal, the
// certificates of a proof and neighbours, in base64 and JSON.
const assignmentMax = 2*(api.InlineMax+api.FailureMax+api.ProofCertificatesMax*api.ProofCertificateMax) + 64<<10

// decodeResponse reads the response to an announce of n entries and removes what no honest owner
// sends.
func decodeResponse(b []byte, n int) (api.AnnounceResponse, error) {
	if len(b) > api.AnnounceMax {
		return api.AnnounceResponse{}, fmt.Errorf("it has more than %d bytes", api.AnnounceMax)
	}
	var wire struct {
		api.AnnounceResponse
		Assignments json.RawMessage `json:"assignments"`
		Owners      json.RawMessage `json:"owners"`
		Standbys    json.RawMessage `json:"standbys"`
		Early       json.RawMessage `json:"earlyStandbys"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return api.AnnounceResponse{}, err
	}
	response := wire.AnnounceResponse
	if response.Version < 1 || response.Version > api.Version+1 {
		const text = "it speaks version %d of the control wire, this host %d"
		return api.AnnounceResponse{}, fmt.Errorf(text, response.Version, api.Version)
	}
	var err error
	if wire.Assignments != nil {
		if response.Assignments, err = api.UnmarshalList[api.Assignment](wire.Assignments, n,
			assignmentMax); err != nil {
			return api.AnnounceResponse{}, fmt.Errorf("assignments: %w", err)
		}
	}
	if len(response.Assignments) != n {
		return api.AnnounceResponse{}, fmt.Errorf("%d assignments for %d entries", len(response.Assignments), n)
	}
	if wire.Owners != nil {
		if response.Owners, err = api.UnmarshalList[string](wire.Owners, ownersMax, 512); err != nil {
			return api.AnnounceResponse{}, fmt.Errorf("owners: %w", err)
		}
	}
	// Sorted, so that the same owners never look like a change.
	response.Owners = slices.DeleteFunc(response.Owners, func(addr string) bool { return !isAddress(addr) })
	slices.Sort(response.Owners)
	response.Owners = slices.Compact(response.Owners)
	if response.Standbys, err = decodeStandbys(wire.Standbys); err != nil {
		return api.AnnounceResponse{}, err
	}
	if response.EarlyStandbys, err = decodeStandbys(wire.Early); err != nil {
		return api.AnnounceResponse{}, err
	}
	response.IntervalMillis = min(max(response.IntervalMillis, 0), 60_000)
	for i := range response.Assignments {
		purify(&response.Assignments[i])
	}
	return response, nil
}

// decodeStandbys reads a list of standbys, nil if there is none, and sorts it.
func decodeStandbys(b json.RawMessage) (list []string, err error) {
	if b == nil {
		return nil, nil
	}
	if list, err = api.UnmarshalList[string](b, api.StandbysMax, 512); err != nil {
		return nil, fmt.Errorf("standbys: %w", err)
	}
	list = slices.DeleteFunc(list, func(addr string) bool { return !isAddress(addr) })
	slices.Sort(list)
	return slices.Compact(list), nil
}

// purify removes from an assignment the parts that exceed bounds or make no sense.
func purify(a *api.Assignment) {
	a.Neighbours = slices.DeleteFunc(a.Neighbours, func(n api.Neighbour) bool {
		_, err := host.ParseID(string(n.ID))
		return err != nil || !isAddress(n.Addr)
	})
	a.Neighbours = a.Neighbours[:min(len(a.Neighbours), api.NeighboursIn)]
	if a.Metadata != nil && a.Metadata.Check() != nil {
		a.Metadata, a.Inline = nil, nil
	}
	if len(a.Inline) > api.InlineMax {
		a.Inline = nil
	}
	if a.Proof != nil && a.Proof.Check() != nil {
		a.Proof = nil
	}
	if f := a.Failure; f != nil {
		f.Body = f.Body[:min(len(f.Body), api.FailureMax)]
		if f.Status < 400 || f.Status > 599 {
			f.Status = http.StatusBadGateway
		}
	}
}

// isAddress reports whether a text is host:port.
func isAddress(s string) bool {
	name, port, err := net.SplitHostPort(s)
	if err != nil || name == "" || len(s) > 262 {
		return false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return err == nil && number > 0
}
