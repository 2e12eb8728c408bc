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
)

// owner is one owner as this host knows it. Its sender alone sends; all its fields but addr
// and wake are guarded by Client.mu.
type owner struct {
	addr string
	// wake tells the sender that there is something in the queue.
	wake chan struct{}

	queue []*call
	// resync says that the owner lacks the host's whole inventory; backlog is what of it
	// is still to be sent.
	resync  bool
	backlog []api.Entry
	// met says that it has answered, so that it deserves a farewell.
	met bool
	// downSince is when it began to fail, zero while it answers. Meanwhile heartbeats alone
	// try it, backoff apart, and nobody has to wait for it.
	downSince time.Time
	backoff   time.Duration
	// refused says that its host answers, or its network does, but it does not.
	refused bool
	// err is why it failed last.
	err error
	// declared says that it failed for so long that the others were told what it knew.
	declared bool
	// standby says that it is asked only while all others are lost.
	standby bool
	// skew is by how much its clock was ahead of this host's when it last told it, in whole
	// seconds, and noticed the one that the log told last.
	skew, noticed time.Duration
}

// call is an entry on its way; done is nil when nobody waits for the answer.
type call struct {
	entry api.Entry
	done  chan result
}

type result struct {
	assignment api.Assignment
	err        error
}

func newOwner(addr string) *owner {
	// A new owner knows nothing of this host, and the host may hold a lot.
	return &owner{addr: addr, wake: make(chan struct{}, 1), resync: true}
}

// down reports whether the last announce failed. Client.mu is held.
func (o *owner) down() bool { return !o.downSince.IsZero() }

// lost reports whether the owner is so surely gone that nobody should wait for it.
// Client.mu is held.
func (o *owner) lost(patience time.Duration) bool {
	return o.down() && (o.refused || time.Since(o.downSince) >= patience)
}

// refuses reports whether an error is word from a host or a network that nobody listens, or none
// that takes this host's certificate, not mere silence.
func refuses(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.As(err, &dns) && dns.IsNotFound || identity.OfClocks(err)
}

// enqueue puts a call in the queue. Client.mu is held.
func (o *owner) enqueue(q *call) {
	o.queue = append(o.queue, q)
	o.poke()
}

// poke has the sender look whether there is something to send, and announce in any case.
func (o *owner) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// fail answers everything in the queue with an error. Client.mu is held.
func (o *owner) fail(err error) {
	for _, q := range o.queue {
		q.answer(result{err: err})
	}
	o.queue = nil
}

// answer tells the one that waits, if there is one; it never blocks, since done holds one answer.
// Client.mu may be held.
func (q *call) answer(r result) {
	select {
	case q.done <- r:
	default:
	}
}

// batch is what goes in one announce.
type batch struct {
	calls   []*call
	entries []api.Entry
	// begins says that the inventory begins here: an owner that asks for it is served.
	begins bool
}

// serve sends to one owner until ctx ends. While one announce is on its way, others gather
// in the queue and go together in the next: nothing waits for a timer.
func (c *Client) serve(ctx context.Context, o *owner) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-timer.C:
		}
		for {
			interval := c.send(ctx, o, c.gather(o))
			timer.Reset(interval)
			if ctx.Err() != nil || !c.pending(o) {
				break
			}
		}
	}
}

// pending reports whether there is more to send to an owner that answers.
func (c *Client) pending(o *owner) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(o.queue) > 0 || !o.down() && (o.resync || len(o.backlog) > 0)
}

// gather takes the next batch: what somebody waits for, else a part of the inventory, else
// nothing, which is a heartbeat.
func (c *Client) gather(o *owner) (b batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mayInline := 0
	for len(o.queue) > 0 && len(b.calls) < batchMax && mayInline < inlineBatch {
		q := o.queue[0]
		o.queue = o.queue[1:]
		if q.entry.Event == api.Started {
			mayInline++
		}
		b.calls = append(b.calls, q)
		b.entries = append(b.entries, q.entry)
	}
	if len(b.calls) > 0 || o.down() {
		return b
	}
	if o.resync {
		o.resync, b.begins = false, true
		c.mu.Unlock()
		held := c.cfg.Inventory() // may read a disk
		c.mu.Lock()
		o.backlog = slices.DeleteFunc(slices.Clone(held), func(e api.Entry) bool {
			return c.active[e.Task] != nil || !slices.Contains(c.firstTwo(e.Task), o)
		})
	}
	n := min(len(o.backlog), batchMax)
	b.entries, o.backlog = o.backlog[:n], o.backlog[n:]
	return b
}

// send sends one batch and hands out the answers. It returns when to announce again at the
// latest.
func (c *Client) send(ctx context.Context, o *owner, b batch) time.Duration {
	bounded, cancel := context.WithTimeout(ctx, c.budget())
	request := api.AnnounceRequest{
		Version: api.Version, Host: c.cfg.Host, Generation: c.cfg.Generation, Entries: b.entries, Standby: c.cfg.Standby,
		Clock: c.cfg.Now(),
	}
	if c.cfg.Purges != nil {
		c.cfg.Purges.Fill(o.addr, &request)
	}
	response, err := c.post(bounded, o.addr, request)
	cancel()
	if err != nil {
		if errors.Is(err, ErrInUse) && c.cfg.InUse != nil {
			c.cfg.InUse(err)
		}
		return c.failed(ctx, o, b, err)
	}
	defer c.learnPurges(ctx, o, response.PurgeMark)
	var named []string
	defer func() {
		if named != nil && c.cfg.Named != nil {
			c.cfg.Named(named)
		}
	}()

	var wasDown time.Duration
	defer func() {
		if wasDown > 0 {
			c.log.Info("owner answers again", "owner", o.addr, "after", wasDown.Round(time.Millisecond))
		}
	}()

	c.mu.Lock()
	defer c.mu.Unlock()
	for i, q := range b.calls {
		q.answer(result{assignment: response.Assignments[i]})
	}
	if o.down() {
		wasDown = max(time.Since(o.downSince), 1)
	}
	o.met, o.declared, o.backoff = true, false, 0
	o.downSince = time.Time{}
	if response.Resync {
		// It is new or was restarted: it needs to hear what is held, and with the next news
		// of each download how its content is brought.
		c.disown(o.addr)
		if !b.begins && !o.resync {
			o.resync, o.backlog = true, nil
		}
	}
	if !o.standby {
		named = c.heard(response)
	}
	if response.IntervalMillis <= 0 {
		return intervalFirst
	}
	return time.Duration(response.IntervalMillis) * time.Millisecond
}

// learnPurges takes in an owner's purge orders, and has the next announce tell it so before that is due.
func (c *Client) learnPurges(ctx context.Context, o *owner, mark string) {
	if c.cfg.Purges == nil {
		return
	}
	transport := c.cfg.Client.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	at := apiclient.Client{Base: c.cfg.Scheme + "://" + o.addr, Transport: transport}
	if c.cfg.Purges.Learn(ctx, o.addr, mark, at) {
		o.poke()
	}
}

// failed takes in that an owner did not answer.
func (c *Client) failed(ctx context.Context, o *owner, b batch, err error) time.Duration {
	var isNews, clocks, called bool
	defer func() {
		switch {
		case isNews && clocks:
			c.log.Warn("this host does without an owner whose clock is too far from its own", "owner", o.addr, "error", err)
		case isNews:
			c.log.Warn("owner does not answer", "owner", o.addr, "error", err)
		}
		if called {
			c.tellStandbysLead()
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range b.calls {
		q.answer(result{err: err})
	}
	o.fail(err)
	if ctx.Err() != nil {
		return 0 // not the owner's fault
	}
	now := time.Now()
	clocks = identity.OfClocks(err)
	isNews = !o.down() || clocks && !identity.OfClocks(o.err)
	if !o.down() {
		o.downSince = now
	}
	o.err, o.refused = err, refuses(err)
	if !c.standing && c.allLost() {
		called = c.call() // so that they know what is held before somebody asks for it
	}
	o.backoff = min(max(backoffMin, 2*o.backoff), backoffMax)
	// Whatever it knew, it may have forgotten when it comes back.
	o.resync, o.backlog = true, nil
	c.disown(o.addr)
	if !o.declared && now.Sub(o.downSince) >= deadAfter {
		// Others moved up in the order of the tasks it led.
		o.declared = true
		for _, other := range c.owners {
			other.resync = true
		}
	}
	return o.backoff
}

// disown has the next news of each download repeat how it was started. Client.mu is held.
func (c *Client) disown(addr string) {
	for _, t := range c.active {
		if t.owner == addr {
			t.owner = none
		}
	}
}

// leave says farewell to all owners that have answered.
func (c *Client) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	c.mu.Lock()
	var met []string
	for _, o := range c.owners {
		if o.met {
			met = append(met, o.addr)
		}
		o.fail(ErrStopped)
	}
	c.mu.Unlock()
	var farewells sync.WaitGroup
	for _, addr := range met {
		farewells.Go(func() {
			if _, err := c.post(ctx, addr, api.AnnounceRequest{Version: api.Version, Host: c.cfg.Host, Generation: c.cfg.Generation, Leaving: true}); err != nil {
				c.log.Debug("owner was not told that this host leaves", "owner", addr, "error", err)
			}
		})
	}
	farewells.Wait()
}

// post makes one request.
func (c *Client) post(ctx context.Context, addr string, r api.AnnounceRequest) (api.AnnounceResponse, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("encoding %d entries for owner %s: %w", len(r.Entries), addr, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.Scheme+"://"+addr+api.PathAnnounce, bytes.NewReader(body))
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
		// In TLS 1.3 the other end's refusal comes with the first read.
		return api.AnnounceResponse{}, fmt.Errorf("announcing %d entries to owner %s: %w", len(r.Entries), addr, identity.Explain(err))
	}
	defer answer.Body.Close()
	if err := c.compareClocks(addr, answer.Header); err != nil && !r.Leaving {
		// The connection is kept: a new one would fail, and over this one the owner learns of
		// the clocks, too, and sends nobody here.
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, api.AnnounceMax))
		return api.AnnounceResponse{}, fmt.Errorf("announcing %d entries to owner %s: %w", len(r.Entries), addr, err)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, api.AnnounceMax+1))
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("reading the answer of owner %s: %w", addr, err)
	}
	if answer.StatusCode == api.StatusInUse {
		return api.AnnounceResponse{}, fmt.Errorf("%w: owner %s: %.400s", ErrInUse, addr, text)
	}
	if answer.StatusCode != http.StatusOK {
		return api.AnnounceResponse{}, fmt.Errorf("owner %s answered %s: %.400s", addr, answer.Status, text)
	}
	response, err := decodeResponse(text, len(r.Entries))
	if err != nil {
		return api.AnnounceResponse{}, fmt.Errorf("answer of owner %s: %w", addr, err)
	}
	return response, nil
}

// assignmentMax bounds one assignment on the wire, in bytes: content, an origin's refusal, the
// certificates of a proof and neighbours, in base64 and JSON.
const assignmentMax = 2*(api.InlineMax+api.FailureMax+api.ProofCertificatesMax*api.ProofCertificateMax) + 64<<10

// decodeResponse reads the answer to an announce of n entries and takes out of it what no
// honest owner says.
func decodeResponse(b []byte, n int) (api.AnnounceResponse, error) {
	if len(b) > api.AnnounceMax {
		return api.AnnounceResponse{}, fmt.Errorf("it has more than %d bytes", api.AnnounceMax)
	}
	var wire struct {
		api.AnnounceResponse
		Assignments json.RawMessage `json:"assignments"`
		Owners      json.RawMessage `json:"owners"`
		Standbys    json.RawMessage `json:"standbys"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return api.AnnounceResponse{}, err
	}
	response := wire.AnnounceResponse
	if response.Version < 1 || response.Version > api.Version+1 {
		return api.AnnounceResponse{}, fmt.Errorf("it speaks version %d of the control wire, this host %d", response.Version, api.Version)
	}
	var err error
	if wire.Assignments != nil {
		if response.Assignments, err = api.UnmarshalList[api.Assignment](wire.Assignments, n, assignmentMax); err != nil {
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
	// In one order, so that the same owners are never taken for news.
	response.Owners = slices.DeleteFunc(response.Owners, func(addr string) bool { return !isAddress(addr) })
	slices.Sort(response.Owners)
	response.Owners = slices.Compact(response.Owners)
	if wire.Standbys != nil {
		if response.Standbys, err = api.UnmarshalList[string](wire.Standbys, api.StandbysMax, 512); err != nil {
			return api.AnnounceResponse{}, fmt.Errorf("standbys: %w", err)
		}
	}
	response.Standbys = slices.DeleteFunc(response.Standbys, func(addr string) bool { return !isAddress(addr) })
	slices.Sort(response.Standbys)
	response.Standbys = slices.Compact(response.Standbys)
	response.IntervalMillis = min(max(response.IntervalMillis, 0), 60_000)
	for i := range response.Assignments {
		purify(&response.Assignments[i])
	}
	return response, nil
}

// purify takes out of an assignment what is beyond bounds or makes no sense.
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
