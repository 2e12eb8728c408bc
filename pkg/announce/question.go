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
)

// ErrNoOwner tells that no owner can be asked: none is known or answers, or the question
// holds a credential and there is no TLS to send it over.
var ErrNoOwner = errors.New("no owner can be asked")

// heardWithin is how long an owner may take to say that it has heard a question. The answer
// itself may take as long as the registry does.
const heardWithin = time.Second

var errUnheard = fmt.Errorf("the owner did not hear within %s", heardWithin)

// Question asks the owner of a question, so that all hosts of the cluster ask the registry
// once. A live owner says at once that it has heard; one that does not within a second is
// passed over, and the caller asks the registry itself.
func (c *Client) Question(ctx context.Context, q api.Question) (api.Answer, error) {
	if q.Authorization != "" && c.cfg.Scheme != "https" {
		return api.Answer{}, fmt.Errorf("asking about %s: %w: credentials go to owners over TLS only", q, ErrNoOwner)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return api.Answer{}, fmt.Errorf("asking about %s: %w", q, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unheard := time.AfterFunc(heardWithin, func() { cancel(errUnheard) })
	defer unheard.Stop()
	failures := []error{ErrNoOwner}
	for _, addr := range c.answering(q.Key()) {
		a, err := c.postQuestion(ctx, addr, body, unheard)
		if err == nil {
			return a, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			cause := context.Cause(ctx)
			if errors.Is(cause, errUnheard) {
				c.cfg.Logger.Warn("owner did not hear a question, so the registry is asked from here", "owner", addr, "question", q)
			}
			failures = append(failures, cause)
			break
		}
	}
	return api.Answer{}, fmt.Errorf("asking about %s: %w", q, errors.Join(failures...))
}

// answering lists the owners that answer, in the order of a key.
func (c *Client) answering(key string) (list []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, addr := range c.ordered(key) {
		if o := c.owners[addr]; !o.down() {
			list = append(list, addr)
		}
	}
	return list
}

// postQuestion makes one request.
func (c *Client) postQuestion(ctx context.Context, addr string, body []byte, unheard *time.Timer) (api.Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.Scheme+"://"+addr+api.PathQuestions, bytes.NewReader(body))
	if err != nil {
		return api.Answer{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.cfg.Client.Do(request)
	if err != nil {
		return api.Answer{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return api.Answer{}, fmt.Errorf("owner %s answered %s", addr, answer.Status)
	}
	unheard.Stop()
	text, err := io.ReadAll(io.LimitReader(answer.Body, api.AnswerMax+1))
	if err != nil {
		return api.Answer{}, fmt.Errorf("reading the answer of owner %s: %w", addr, err)
	}
	a, err := api.DecodeAnswer(text)
	if err != nil {
		return api.Answer{}, fmt.Errorf("owner %s: %w", addr, err)
	}
	return a, nil
}
