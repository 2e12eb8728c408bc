package announce

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/darter-io/darter/pkg/api"
)

// withdrawnTimeout bounds the question what was withdrawn.
const withdrawnTimeout = 3 * time.Second

// learnWithdrawn asks an owner what was withdrawn when it says that there is something else
// than this host knows from it. What fails is tried again with the next announce.
func (c *Client) learnWithdrawn(ctx context.Context, o *owner, mark string) {
	if c.cfg.Withdrawn == nil || mark == "" || mark == o.withdrawn {
		return
	}
	list, err := AskWithdrawn(ctx, c.cfg.Client, c.cfg.Scheme, o.addr, o.withdrawn)
	if err == nil {
		err = c.cfg.Withdrawn(list)
	}
	if err != nil {
		c.log.Warn("what was withdrawn is not known", "owner", o.addr, "error", err)
		return
	}
	o.withdrawn = mark
	o.poke() // so that the owner knows how far this host is, before its next word is due
}

// AskWithdrawn asks an owner what it remembers as withdrawn; nothing, when that has the mark
// that is known already.
func AskWithdrawn(ctx context.Context, client *http.Client, scheme, addr, known string) ([]api.Withdrawal, error) {
	ctx, cancel := context.WithTimeout(ctx, withdrawnTimeout)
	defer cancel()
	at := url.URL{Scheme: scheme, Host: addr, Path: api.PathWithdrawals, RawQuery: url.Values{"mark": {known}}.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking owner %s what was withdrawn: %w", addr, err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking owner %s what was withdrawn: %w", addr, err)
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusNoContent, http.StatusNotFound: // nothing new, or a former version
		return nil, nil
	case http.StatusOK:
	default:
		return nil, fmt.Errorf("asking owner %s what was withdrawn: %s", addr, answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, api.WithdrawalsSize+1))
	if err != nil {
		return nil, fmt.Errorf("asking owner %s what was withdrawn: %w", addr, err)
	}
	w, err := api.DecodeWithdrawals(text)
	if err != nil {
		return nil, fmt.Errorf("asking owner %s what was withdrawn: %w", addr, err)
	}
	return w.List, nil
}
