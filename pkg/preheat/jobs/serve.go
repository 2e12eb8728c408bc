package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
)

// recordMax bounds the JSON of one record, in bytes.
const recordMax = 8 << 20

// WireRecord is a record between supernodes.
type WireRecord struct {
	preheat.Record
	// Secrets are the credentials of the job, in plain text: a supernode sends them over TLS, and only when it gives the
	// record to another one. Holds says that it has them.
	Secrets map[string]string `json:"secrets,omitempty"`
	Holds   bool              `json:"holds,omitempty"`
	// AgeMillis is for how long the sender has known the job: no supernode compares the clocks of two machines.
	AgeMillis int64 `json:"ageMillis,omitempty"`
}

// String names the job, so that no verb prints the credentials.
func (r WireRecord) String() string { return "preheat " + r.ID }

// GoString keeps %#v from printing them.
func (r WireRecord) GoString() string { return r.String() }

// Records are the jobs that a supernode knows, and what it holds of them itself.
type Records struct {
	Version int               `json:"version"`
	List    []WireRecord      `json:"list,omitempty"`
	Host    *host.Host        `json:"host,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Reports []preheat.Report  `json:"reports,omitempty"`
}

// DecodeRecords reads records of at most [api.PreheatRecordsSize] bytes.
func DecodeRecords(b []byte) (Records, error) {
	if len(b) > api.PreheatRecordsSize {
		return Records{}, fmt.Errorf("preheat records of more than %d bytes", api.PreheatRecordsSize)
	}
	var wire struct {
		Records
		List    json.RawMessage `json:"list"`
		Reports json.RawMessage `json:"reports"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return Records{}, fmt.Errorf("reading preheat records: %w", err)
	}
	out := wire.Records
	if out.Version < 1 || out.Version > api.Version+1 || len(out.Labels) > preheat.ListMax {
		return Records{}, fmt.Errorf("preheat records of version %d, this host speaks %d", out.Version, api.Version)
	}
	var err error
	if wire.List != nil {
		if out.List, err = api.UnmarshalList[WireRecord](wire.List, 2*preheat.JobsMax, recordMax); err != nil {
			return Records{}, fmt.Errorf("reading preheat records: %w", err)
		}
	}
	if wire.Reports != nil {
		if out.Reports, err = api.UnmarshalList[preheat.Report](wire.Reports, preheat.ReportsMax,
			preheat.ReportMax); err != nil {
			return Records{}, fmt.Errorf("reading preheat records: %w", err)
		}
	}
	for i := range out.List {
		r := &out.List[i]
		for k, v := range r.Secrets {
			if r.Spec.Headers == nil {
				r.Spec.Headers = map[string]secret.String{}
			}
			r.Spec.Headers[k] = secret.String(v)
		}
		r.Secrets = nil
		if err := r.Check(); err != nil {
			return Records{}, fmt.Errorf("reading preheat records: %w", err)
		}
	}
	for _, r := range out.Reports {
		if err := r.Check(); err != nil {
			return Records{}, fmt.Errorf("reading preheat records: %w", err)
		}
	}
	return out, nil
}

// wire is a record of an age for another supernode, with its credentials if they may be sent.
func (s *Service) wire(r preheat.Record, age time.Duration, secrets bool) WireRecord {
	out := WireRecord{Record: r, AgeMillis: age.Milliseconds(), Holds: r.Secret && !r.Lacks()}
	if secrets && s.cfg.Secure {
		for k, v := range r.Spec.Headers {
			if out.Secrets == nil {
				out.Secrets = map[string]string{}
			}
			out.Secrets[k] = v.Reveal()
		}
	}
	return out
}

// Records lists all jobs, without credentials; with own, what this supernode holds, too.
func (s *Service) Records(own bool) Records {
	out := Records{Version: api.Version}
	if own {
		out.Host, out.Labels, out.Reports = &s.cfg.Host, s.cfg.Labels, s.cfg.Worker.Reports()
	}
	v := s.look()
	for _, r := range v.records {
		x := s.wire(*r, min(v.now.Sub(v.born[r.ID]), ageMax), false)
		x.Holds = x.Holds && own // not in the journal
		out.List = append(out.List, x)
	}
	return out
}

// ServeRecords serves [api.PathPreheatRecords].
func (s *Service) ServeRecords(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		answer(w, http.StatusOK, s.Records(true))
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.PreheatRecordsSize+1))
	var got Records
	if err == nil {
		got, err = DecodeRecords(b)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.merge(got.List)
	w.WriteHeader(http.StatusNoContent)
}

// ServeOrders serves [api.PathPreheatOrders]: each host gets its own orders alone. In a cluster with a secret its
// certificate says which host it is.
func (s *Service) ServeOrders(w http.ResponseWriter, r *http.Request) {
	id := host.ID(r.URL.Query().Get("host"))
	if r.TLS != nil {
		proved, err := identity.HostOfTLS(*r.TLS)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		id = proved
	}
	list, _ := s.orders(id)
	answer(w, http.StatusOK, api.PreheatOrders{Version: api.Version, List: list})
}

// Request is the body of an operator's new job: a spec, with what JSON of a spec leaves out.
type Request struct {
	preheat.Spec
	// Headers are the job's credentials.
	Headers map[string]string `json:"headers,omitempty"`
	// DeadlineIn is the deadline as a duration from now, if Spec has none.
	DeadlineIn string `json:"deadlineIn,omitempty"`
}

// requestMax bounds a Request, in bytes.
const requestMax = 1 << 20

// ServeCreate serves the POST of [api.PathPreheatJobs].
func (s *Service) ServeCreate(w http.ResponseWriter, r *http.Request) {
	var q Request
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestMax))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("the body is no job: %w", err))
		return
	}
	for k, v := range q.Headers {
		if q.Spec.Headers == nil {
			q.Spec.Headers = map[string]secret.String{}
		}
		q.Spec.Headers[k] = secret.String(v)
	}
	if q.DeadlineIn != "" {
		in, err := time.ParseDuration(q.DeadlineIn)
		if err != nil || in <= 0 || !q.Deadline.IsZero() {
			refuse(w, http.StatusBadRequest, errors.New("deadlineIn is a duration, as 30m, and excludes deadline"))
			return
		}
		q.Deadline = s.cfg.Now().Add(in)
	}
	job, err := s.Create(r.Context(), q.Spec)
	switch {
	case errors.Is(err, preheat.ErrInvalid):
		refuse(w, http.StatusBadRequest, err)
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err)
	default:
		w.Header().Set("Location", api.PathPreheatJobs+"/"+job.ID)
		answer(w, http.StatusCreated, job)
	}
}

// ServeList serves the GET of [api.PathPreheatJobs].
func (s *Service) ServeList(w http.ResponseWriter) { answer(w, http.StatusOK, s.List()) }

// ServeJob serves one job.
func (s *Service) ServeJob(w http.ResponseWriter, id string) {
	job, ok := s.Get(id)
	if !ok {
		unknown(w, id)
		return
	}
	answer(w, http.StatusOK, job)
}

// ServeGate answers 200 if enough hosts have everything, else 425; the body is a [preheat.Gate] either way.
func (s *Service) ServeGate(w http.ResponseWriter, id string) {
	g, ok := s.Gate(id)
	switch {
	case !ok:
		unknown(w, id)
	case g.Ready:
		answer(w, http.StatusOK, g)
	default:
		answer(w, http.StatusTooEarly, g)
	}
}

// ServeChange serves an operator's wish about a job.
func (s *Service) ServeChange(w http.ResponseWriter, r *http.Request, id string, wish Change) {
	job, ok := s.Change(r.Context(), id, wish)
	if !ok {
		unknown(w, id)
		return
	}
	answer(w, http.StatusOK, job)
}

func unknown(w http.ResponseWriter, id string) {
	refuse(w, http.StatusNotFound, fmt.Errorf("no preheat %.60q is known here; a job is forgotten %s after its end", id,
		preheat.Keep))
}

func refuse(w http.ResponseWriter, status int, err error) {
	answer(w, status, map[string]string{"error": strings.TrimSpace(err.Error())})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}
