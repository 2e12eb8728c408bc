package order

import (
	"fmt"
	"time"

	"github.com/darter-io/darter/pkg/preheat"
)

// scopes are the names that Harbor 2.12 and later, and Dragonfly's jobs API, have for scopes.
var scopes = map[string]preheat.ScopeKind{
	"": "", "single_seed_peer": preheat.OneSeed, "all_seed_peers": preheat.AllSeeds, "all_peers": preheat.AllNodes,
}

// ParseJob reads the body of POST /oapi/v1/jobs, which Harbor 2.12 and later send: the jobs API of Dragonfly 2.
func ParseJob(body []byte, listed Listed) (Order, error) {
	var q struct {
		Type string `json:"type"`
		Args struct {
			Type     string            `json:"type"`
			URL      string            `json:"url"`
			Headers  map[string]string `json:"headers"`
			Scope    string            `json:"scope"`
			Platform string            `json:"platform"`
		} `json:"args"`
	}
	if err := decode(body, &q); err != nil {
		return Order{}, err
	}
	if q.Type != "preheat" {
		return Order{}, fmt.Errorf("%w: a job of type %.30q; only preheat is possible", ErrUnsupported, q.Type)
	}
	scope, known := scopes[q.Args.Scope]
	if !known {
		return Order{}, fmt.Errorf("%w: scope %.30q; write single_seed_peer, all_seed_peers or all_peers", ErrUnsupported,
			q.Args.Scope)
	}
	o, err := image(q.Args.Type, q.Args.URL, q.Args.Headers, listed)
	if err != nil {
		return Order{}, err
	}
	o.Scope, o.Platform = scope, q.Args.Platform
	return o, nil
}

// ParsePreheat reads the body of POST /preheats, which Harbor 2.1 to 2.11 send: the API of Dragonfly 1.
func ParsePreheat(body []byte, listed Listed) (Order, error) {
	var q struct {
		Type    string            `json:"type"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
		Digest  string            `json:"digest"`
	}
	if err := decode(body, &q); err != nil {
		return Order{}, err
	}
	o, err := image(q.Type, q.URL, q.Headers, listed)
	if err != nil {
		return Order{}, err
	}
	if err := o.setDigest(q.Digest); err != nil {
		return Order{}, err
	}
	return o, nil
}

// image is an order of an image by the URL of its manifest.
func image(kind, url string, headers map[string]string, listed Listed) (Order, error) {
	if kind != "image" {
		return Order{}, fmt.Errorf("%w: a preheat of type %.30q; only image is possible here", ErrUnsupported, kind)
	}
	o, err := manifestURL(url, listed)
	if err != nil {
		return Order{}, err
	}
	if err := o.authorize(headers); err != nil {
		return Order{}, err
	}
	return o, nil
}

// JobAnswer is a job as the jobs API of Dragonfly 2 shows it.
type JobAnswer struct {
	ID        int64     `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	// State is PENDING, SUCCESS or FAILURE: Harbor takes every other word for a failure.
	State  string    `json:"state"`
	Result jobResult `json:"result"`
}

type jobResult struct {
	JobStates []jobState `json:"job_states"`
}

type jobState struct {
	Error   string       `json:"error"`
	Results []taskResult `json:"results"`
}

type taskResult struct {
	// Cluster is always 1, because Darter numbers no clusters.
	Cluster int        `json:"scheduler_cluster_id"`
	Success []hostTask `json:"success_tasks"`
	Failure []hostTask `json:"failure_tasks"`
}

type hostTask struct {
	URL         string `json:"url"`
	Hostname    string `json:"hostname"`
	IP          string `json:"ip"`
	Description string `json:"description,omitempty"`
}

// tasksShown bounds the tasks of one answer. Harbor prints each into the log of its task.
const tasksShown = 1000

// AnswerJob shows a job to Harbor 2.12 and later.
func AnswerJob(j preheat.Job) JobAnswer {
	out := JobAnswer{ID: j.Number, CreatedAt: j.Created.UTC(), UpdatedAt: latest(j).UTC(), State: "PENDING"}
	tasks := taskResult{Cluster: 1, Success: []hostTask{}, Failure: []hostTask{}}
	for _, t := range j.Tasks {
		shown := hostTask{URL: t.URL, Hostname: t.Host, IP: t.IP}
		switch {
		case t.State == preheat.Success && len(tasks.Success) < tasksShown:
			tasks.Success = append(tasks.Success, shown)
		case t.State == preheat.Failed && len(tasks.Failure) < tasksShown:
			shown.Description = t.Error
			tasks.Failure = append(tasks.Failure, shown)
		}
	}
	state := jobState{Results: []taskResult{tasks}}
	switch j.State {
	case preheat.Success:
		out.State = "SUCCESS"
	case preheat.Failed, preheat.Cancelled:
		out.State, state.Error = "FAILURE", failure(j)
	}
	out.Result.JobStates = []jobState{state}
	return out
}

// PreheatAnswer is a job as the API of Dragonfly 1 shows it. Times are in RFC 3339, empty if they are not known yet.
type PreheatAnswer struct {
	ID         string `json:"ID"`
	StartTime  string `json:"startTime,omitempty"`
	FinishTime string `json:"finishTime,omitempty"`
	ErrorMsg   string `json:"errorMsg"`
	// Status is WAITING, RUNNING, SUCCESS or FAILED.
	Status string `json:"Status"`
}

// AnswerPreheat shows a job to Harbor 2.1 to 2.11.
func AnswerPreheat(j preheat.Job) PreheatAnswer {
	out := PreheatAnswer{ID: j.ID, StartTime: stamp(j.Created), FinishTime: stamp(j.Finished), Status: "RUNNING"}
	switch j.State {
	case preheat.Pending:
		out.Status = "WAITING"
	case preheat.Success:
		out.Status = "SUCCESS"
	case preheat.Failed, preheat.Cancelled:
		out.Status, out.ErrorMsg = "FAILED", failure(j)
	}
	return out
}

// stamp is a time in RFC 3339, empty for the zero time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// latest is the last change of a job.
func latest(j preheat.Job) time.Time {
	for _, t := range []time.Time{j.Finished, j.Updated} {
		if !t.IsZero() {
			return t
		}
	}
	return j.Created
}

// failure says why a job failed; it is never empty, because Harbor shows nothing else.
func failure(j preheat.Job) string {
	switch {
	case j.Error != "":
		return j.Error
	case j.State == preheat.Cancelled:
		return "an operator cancelled the preheat"
	}
	return "not all hosts in scope have the image"
}
