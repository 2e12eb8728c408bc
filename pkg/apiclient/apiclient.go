// Package apiclient calls the HTTP APIs of Darter's programs: one method per call, with the types of pkg/api.
//
// A Client never reads more of an answer than the call's bound, and never uses a proxy of the environment.
// Start at [Local], [Client.Status] and [Client.Do].
package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// answerMax bounds an answer of a call that sets no Limit, in bytes.
const answerMax = 1 << 20

// Client calls the API at one address. Its zero value is of no use.
type Client struct {
	// Base is the API's scheme and address: http://127.0.0.1:5002.
	Base string
	// Transport sends the requests. It belongs to the caller, who closes its connections.
	Transport http.RoundTripper
}

// Local returns a client of a program of this machine: plain HTTP, a connection per call.
func Local(addr string) Client {
	return Client{Base: "http://" + addr, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
}

// StatusError is an answer with a status that the call does not expect.
type StatusError struct {
	Code   int
	Status string // as in the answer: "503 Service Unavailable"
	Text   string // the beginning of the body
}

func (e *StatusError) Error() string {
	if e.Text == "" {
		return "it answers " + e.Status
	}
	return "it answers " + e.Status + ": " + e.Text
}

// BodyError is an answer whose status is right and whose body is not that of the API.
type BodyError struct {
	Status string
	Err    error
}

func (e *BodyError) Error() string { return fmt.Sprintf("it answers %s: %v", e.Status, e.Err) }

func (e *BodyError) Unwrap() error { return e.Err }

// Call is one request.
type Call struct {
	Method, Path string
	Query        url.Values
	// Body is sent as JSON; nil sends none.
	Body any
	// Limit bounds the bytes of the answer that are read; 0 is 1 MiB.
	Limit int64
}

// Reply is an answer of any status. Body has at most one byte more than the call's Limit.
type Reply struct {
	Code   int
	Status string
	Header http.Header
	Body   []byte
}

// Do makes a call and reads its answer whole. The error is of the connection, or of a Body that is no JSON.
func (c Client) Do(ctx context.Context, call Call) (Reply, error) {
	var body io.Reader
	if call.Body != nil {
		b, err := json.Marshal(call.Body)
		if err != nil {
			return Reply{}, err
		}
		body = bytes.NewReader(b)
	}
	at := c.Base + call.Path
	if len(call.Query) > 0 {
		at += "?" + call.Query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, call.Method, at, body)
	if err != nil {
		return Reply{}, err
	}
	if call.Body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.Transport.RoundTrip(request)
	if err != nil {
		return Reply{}, err
	}
	defer answer.Body.Close()
	limit := call.Limit
	if limit == 0 {
		limit = answerMax
	}
	reply := Reply{Code: answer.StatusCode, Status: answer.Status, Header: answer.Header}
	reply.Body, err = io.ReadAll(io.LimitReader(answer.Body, limit+1))
	return reply, err
}

// Err returns nil for one of the statuses, else a [StatusError].
func (r Reply) Err(want ...int) error {
	for _, code := range want {
		if r.Code == code {
			return nil
		}
	}
	text := bytes.TrimSpace(r.Body)
	return &StatusError{Code: r.Code, Status: r.Status, Text: api.OneLine(string(text[:min(len(text), 300)]))}
}

// decode reads the JSON of a 200 into out.
func (r Reply) decode(out any) error {
	if err := r.Err(http.StatusOK); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Body, out); err != nil {
		return &BodyError{Status: r.Status, Err: err}
	}
	return nil
}

// get makes a GET and decodes its answer.
func (c Client) get(ctx context.Context, path string, out any) (Reply, error) {
	reply, err := c.Do(ctx, Call{Method: http.MethodGet, Path: path})
	if err != nil {
		return reply, err
	}
	return reply, reply.decode(out)
}

// Status asks a program for its status. The header of the answer tells the program's clock (Date).
func (c Client) Status(ctx context.Context) (s api.Status, header http.Header, err error) {
	reply, err := c.get(ctx, api.PathStatus, &s)
	return s, reply.Header, err
}

// Task asks a program what it holds of a task. The ID may be anything that a user gave: it is escaped.
func (c Client) Task(ctx context.Context, id string) (s api.TaskStatus, err error) {
	_, err = c.get(ctx, api.PathTasks+"/"+url.PathEscape(id), &s)
	return s, err
}

// PurgeOrders asks an owner for the purge orders that it knows; nil if those are the orders of the mark
// known, or if the owner is of a version that has none.
func (c Client) PurgeOrders(ctx context.Context, known string) ([]api.PurgeOrder, error) {
	reply, err := c.Do(ctx, Call{
		Method: http.MethodGet, Path: api.PathPurgeOrders, Query: url.Values{"mark": {known}},
		Limit: api.PurgeOrdersSize,
	})
	if err != nil {
		return nil, err
	}
	if reply.Code == http.StatusNoContent || reply.Code == http.StatusNotFound {
		return nil, nil
	}
	if err := reply.Err(http.StatusOK); err != nil {
		return nil, err
	}
	orders, err := api.DecodePurgeOrders(reply.Body)
	return orders.List, err
}

// SendPurgeOrders gives orders to another member. It returns nil once the member has carried them out.
func (c Client) SendPurgeOrders(ctx context.Context, list []api.PurgeOrder) error {
	reply, err := c.Do(ctx, Call{
		Method: http.MethodPost, Path: api.PathPurgeOrders, Body: api.PurgeOrders{Version: api.Version, List: list},
	})
	if err != nil {
		return err
	}
	return reply.Err(http.StatusNoContent)
}

// PurgeProgress asks an owner how far the hosts that announce to it are with a task.
func (c Client) PurgeProgress(ctx context.Context, id task.ID) (p api.PurgeProgress, err error) {
	_, err = c.get(ctx, api.PathPurgeProgress+"/"+string(id), &p)
	return p, err
}

// Purge has a program of this machine purge a task from the cluster, and wait for the hosts' reports for
// at most wait.
func (c Client) Purge(ctx context.Context, id task.ID, wait time.Duration) (result api.PurgeResult, err error) {
	reply, err := c.Do(ctx, Call{
		Method: http.MethodDelete, Path: api.PathPurge + "/" + string(id), Query: url.Values{"wait": {wait.String()}},
	})
	if err != nil {
		return result, err
	}
	return result, reply.decode(&result)
}
