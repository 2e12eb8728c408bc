package announce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/owners"
)

// ErrNoOwner means that no owner can take a lookup: none is known or answers, or the lookup holds a
// credential and there is no TLS to send it over.
var ErrNoOwner = errors.New("no owner can be asked")

// ErrHere means that this host itself is the owner of a lookup.
var ErrHere = errors.New("this host is the owner")

// heardWithin is how long an owner may take to confirm a lookup by its status. The reply itself may take as long as the
// registry needs.
const heardWithin = time.Second

var errUnheard = fmt.Errorf("the owner did not confirm within %s", heardWithin)

// Lookup sends a lookup to its owner, so that all hosts of the cluster ask the registry once. A live
// owner confirms it at once; when none does within a second, the caller asks the registry itself. The
// error wraps [ErrHere] where this host is the owner, otherwise [ErrNoOwner].
func (c *Client) Lookup(ctx context.Context, q api.Lookup) (api.LookupReply, error) {
	if q.Authorization != "" && c.cfg.Scheme != "https" {
		return api.LookupReply{}, fmt.Errorf("looking up %s: %w: credentials go to owners over TLS only", q, ErrNoOwner)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return api.LookupReply{}, fmt.Errorf("looking up %s: %w", q, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	heard := c.cfg.Lag.After(heardWithin, func() { cancel(errUnheard) })
	defer heard()
	failures := []error{ErrNoOwner}
	tried := map[string]bool{}
	for {
		addr := c.nextOwner(q.Key(), tried)
		if addr == local {
			failures = append(failures, ErrHere)
		}
		if addr == local || addr == nobody {
			break
		}
		tried[addr] = true
		a, err := c.postLookup(ctx, addr, body, heard)
		if err == nil {
			return a, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			cause := context.Cause(ctx)
			if errors.Is(cause, errUnheard) {
				c.cfg.Logger.Warn("owner did not confirm a lookup, so this host asks the registry", "owner", addr,
					"lookup", q)
			}
			failures = append(failures, cause)
			break
		}
		c.refused(addr, err)
	}
	return api.LookupReply{}, fmt.Errorf("looking up %s: %w", q, errors.Join(failures...))
}

const (
	// recallsMax is how many owners a host asks what they remember.
	recallsMax = 8
	// recallWithin bounds the wait for one of them, in running time. Without its reply a pull may fail, so it is long for
	// a busy machine.
	recallWithin = 5 * time.Second
)

// Recall asks the owners, one after the other, what they remember of a lookup, and returns their replies. The lookup
// brings no credentials. An owner that does not reply within 5 s is passed over.
func (c *Client) Recall(ctx context.Context, q api.Lookup) (replies []api.LookupReply) {
	q.Authorization = ""
	body, err := json.Marshal(q)
	if err != nil {
		return nil
	}
	tried := map[string]bool{}
	for range recallsMax {
		addr := c.nextRemote(q.Key(), tried)
		if addr == nobody || ctx.Err() != nil {
			break
		}
		tried[addr] = true
		one, cancel := c.cfg.Lag.WithTimeout(ctx, recallWithin, nil)
		a, err := c.postLookup(one, addr, body, func() bool { return true })
		cancel()
		if err == nil {
			replies = append(replies, a)
		}
	}
	return replies
}

// nextRemote returns the first owner of a key that answers, is another host and was not tried, or nobody.
func (c *Client) nextRemote(key string, tried map[string]bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, addr := range c.view.Answering(key) {
		if !c.isSelf(addr) && !tried[addr] {
			return addr
		}
	}
	return nobody
}

// nextOwner returns the first owner of a key that answers and was not tried, or else one that fell silent a moment ago.
// If this host is that owner, it returns local. If there is no such owner, it returns nobody.
func (c *Client) nextOwner(key string, tried map[string]bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, addr := range c.view.Answering(key) {
		switch {
		case c.isSelf(addr):
			return local
		case !tried[addr]:
			return addr
		}
	}
	for _, addr := range c.view.Doubted(c.cfg.Lag.Now(), key) {
		if !tried[addr] {
			return addr
		}
	}
	return nobody
}

// refused reports to the view that an owner refused a connection, and sends the owner a heartbeat at once, to find out
// whether it is dead.
func (c *Client) refused(addr string, err error) {
	cause := causeOf(err)
	if cause == owners.Silence {
		return
	}
	c.mu.Lock()
	changes := c.apply(owners.Refused{From: addr, Cause: cause, Err: err})
	if s := c.senders[addr]; s != nil && changes.Suspected {
		s.poke()
	}
	c.mu.Unlock()
	c.report(addr, changes, err)
}

// postLookup makes one request. It calls heard once the owner has confirmed it.
func (c *Client) postLookup(
	ctx context.Context, addr string, body []byte, heard func() bool,
) (api.LookupReply, error) {
	at := c.cfg.Scheme + "://" + addr + api.PathLookups
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
	if err != nil {
		return api.LookupReply{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.cfg.Client.Do(request)
	if err != nil {
		return api.LookupReply{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return api.LookupReply{}, fmt.Errorf("owner %s answered %s", addr, answer.Status)
	}
	heard()
	text, err := io.ReadAll(io.LimitReader(answer.Body, api.LookupReplyMax+1))
	if err != nil {
		return api.LookupReply{}, fmt.Errorf("reading the answer of owner %s: %w", addr, err)
	}
	a, err := api.DecodeLookupReply(text)
	if err != nil {
		return api.LookupReply{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	return a, nil
}
