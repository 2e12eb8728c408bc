package apiclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/preheat"
)

// jobMax bounds the answer about one job, and gateMax that about its hosts, in bytes.
const (
	jobMax  = 32 << 20
	gateMax = 16 << 20
)

// PreheatOrders asks an owner for the preheat orders of this host; none of an owner of a version without any.
func (c Client) PreheatOrders(ctx context.Context, id host.ID) ([]preheat.Order, error) {
	reply, err := c.Do(ctx, Call{Method: http.MethodGet, Path: api.PathPreheatOrders,
		Query: url.Values{"host": {string(id)}}, Limit: api.PreheatOrdersSize})
	if err != nil {
		return nil, err
	}
	if err := reply.Err(http.StatusOK); err != nil {
		return nil, err
	}
	orders, err := api.DecodePreheatOrders(reply.Body)
	return orders.List, err
}

// CreatePreheat begins a job; request is the JSON of package jobs.
func (c Client) CreatePreheat(ctx context.Context, request any) (job preheat.Job, err error) {
	return c.preheat(ctx, Call{Method: http.MethodPost, Path: api.PathPreheatJobs, Body: request})
}

// Preheats lists the jobs.
func (c Client) Preheats(ctx context.Context) (list []preheat.Job, err error) {
	_, err = c.get(ctx, api.PathPreheatJobs, &list)
	return list, err
}

// Preheat returns a job with the objects on each host.
func (c Client) Preheat(ctx context.Context, id string) (preheat.Job, error) {
	return c.preheat(ctx, Call{Method: http.MethodGet, Path: jobPath(id), Limit: jobMax})
}

// CancelPreheat ends a job.
func (c Client) CancelPreheat(ctx context.Context, id string) (preheat.Job, error) {
	return c.preheat(ctx, Call{Method: http.MethodDelete, Path: jobPath(id)})
}

// PausePreheat pauses a job, or has it go on.
func (c Client) PausePreheat(ctx context.Context, id string, pause bool) (preheat.Job, error) {
	verb := "/resume"
	if pause {
		verb = "/pause"
	}
	return c.preheat(ctx, Call{Method: http.MethodPost, Path: jobPath(id) + verb})
}

// PreheatGate asks who has everything of a job now.
func (c Client) PreheatGate(ctx context.Context, id string) (g preheat.Gate, err error) {
	reply, err := c.Do(ctx, Call{Method: http.MethodGet, Path: jobPath(id) + "/gate", Limit: gateMax})
	if err == nil {
		err = reply.Err(http.StatusOK, http.StatusTooEarly)
	}
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(reply.Body, &g); err != nil {
		return g, &BodyError{Status: reply.Status, Err: err}
	}
	return g, nil
}

func jobPath(id string) string { return api.PathPreheatJobs + "/" + url.PathEscape(id) }

func (c Client) preheat(ctx context.Context, call Call) (job preheat.Job, err error) {
	reply, err := c.Do(ctx, call)
	if err == nil {
		err = reply.Err(http.StatusOK, http.StatusCreated)
	}
	if err != nil {
		return job, err
	}
	if err := json.Unmarshal(reply.Body, &job); err != nil {
		return job, &BodyError{Status: reply.Status, Err: err}
	}
	return job, nil
}
