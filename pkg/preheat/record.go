package preheat

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// Bounds of what supernodes keep and exchange.
const (
	// ObjectsMax is how many objects one job may have.
	ObjectsMax = 4096
	// ObjectsInAll is how many objects all jobs together may have, so that their JSON fits into one message.
	ObjectsInAll = 1 << 18
	// JobsMax is how many jobs supernodes remember. Those that ended first go first.
	JobsMax = 256
	// Keep is how long a job that ended is remembered, and its gate answered.
	Keep = 24 * time.Hour
	// TextMax bounds an error of a job or of a host, in bytes.
	TextMax = 600
)

// Object is a blob or manifest of a job.
type Object struct {
	ID   task.ID   `json:"id"`
	Kind task.Kind `json:"kind"`
	// Size in bytes as the manifest that names it states it; 0 if none does.
	Size      int64  `json:"size"`
	MediaType string `json:"mediaType,omitempty"`
}

// Resolved is what a job's reference means: the manifest and all that hosts fetch.
type Resolved struct {
	Digest  task.ID  `json:"digest"`
	Objects []Object `json:"objects"`
}

// Control is what operators last wished; a higher Rev is a later wish.
type Control struct {
	Rev    int64 `json:"rev"`
	Paused bool  `json:"paused,omitempty"`
}

// End is how a job ended.
type End struct {
	State State     `json:"state"`
	At    time.Time `json:"at"`
	Error string    `json:"error,omitempty"`
}

// Record is what supernodes remember of a job and give to each other. Every part of it only grows, so that
// [Record.Merge] of two records does not depend on who sent them in which order.
type Record struct {
	ID      string    `json:"id"`
	Spec    Spec      `json:"spec"`
	Created time.Time `json:"created"`
	// Secret says that the job has credentials: Spec.Headers, in the memory of supernodes alone.
	Secret  bool    `json:"secret,omitempty"`
	Control Control `json:"control"`
	// Cancelled is never taken back.
	Cancelled bool      `json:"cancelled,omitempty"`
	Resolved  *Resolved `json:"resolved,omitempty"`
	// Open is how many waves are open after the first.
	Open int  `json:"open,omitempty"`
	End  *End `json:"end,omitempty"`
	// Called says that the webhook was called.
	Called bool `json:"called,omitempty"`
}

// New returns the record of a new job, with a spec that [Spec.ValidateAt] accepts. Its ID is 32 hex
// digits that no other job has.
func New(id string, spec Spec, now time.Time) Record {
	if spec.Scope.Kind == "" {
		spec.Scope.Kind = AllNodes
	}
	if spec.Deadline.IsZero() {
		spec.Deadline = now.Add(DeadlineDefault)
	}
	spec.Deadline = spec.Deadline.UTC()
	return Record{ID: id, Spec: spec, Created: now.UTC(), Secret: len(spec.Headers) > 0}
}

// NumberOf returns the decimal name of a job: the first 52 bits of its ID.
func NumberOf(id string) int64 {
	n, err := strconv.ParseInt(id[:min(len(id), 13)], 16, 64)
	if err != nil {
		return 0
	}
	return max(n, 1)
}

// IsID reports whether a text can be a job's ID.
func IsID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// Number is [NumberOf] its ID.
func (r Record) Number() int64 { return NumberOf(r.ID) }

// State is the state of the job.
func (r Record) State() State {
	switch {
	case r.Cancelled:
		return Cancelled
	case r.End != nil:
		return r.End.State
	case r.Control.Paused:
		return Paused
	case r.Resolved == nil:
		return Pending
	}
	return Running
}

// Lacks reports whether the job needs credentials that are not here: every supernode that had them was restarted.
func (r Record) Lacks() bool { return r.Secret && len(r.Spec.Headers) == 0 }

// Ended returns when the job ended, zero while it runs.
func (r Record) Ended() time.Time {
	if r.End == nil {
		return time.Time{}
	}
	return r.End.At
}

// Bytes is the size of all objects.
func (r Record) Bytes() (n int64) {
	if r.Resolved == nil {
		return 0
	}
	for _, o := range r.Resolved.Objects {
		n += o.Size
	}
	return n
}

// Merge joins what two supernodes know of one job. It ignores a record of this ID with another spec: the credentials of
// this job would go to the registry of that one.
func (r Record) Merge(o Record) Record {
	if !r.Spec.same(o.Spec) || r.Secret != o.Secret {
		return r
	}
	if r.Spec.Headers == nil {
		r.Spec.Headers = o.Spec.Headers
	}
	if o.Control.Rev > r.Control.Rev || o.Control.Rev == r.Control.Rev && o.Control.Paused {
		r.Control = o.Control
	}
	r.Cancelled, r.Called = r.Cancelled || o.Cancelled, r.Called || o.Called
	r.Open = max(r.Open, o.Open)
	if r.Resolved == nil || o.Resolved != nil && o.Resolved.Digest < r.Resolved.Digest {
		r.Resolved = o.Resolved
	}
	if r.End == nil || o.End != nil && o.End.before(*r.End) {
		r.End = o.End
	}
	return r
}

// same reports whether two specs are equal but for their credentials and their webhook, which is not everywhere.
func (s Spec) same(o Spec) bool {
	s.Webhook, o.Webhook = "", ""
	a, err := json.Marshal(s)
	b, failed := json.Marshal(o)
	return err == nil && failed == nil && bytes.Equal(a, b)
}

// before orders ends: the first one counts.
func (e End) before(o End) bool {
	return cmp.Or(e.At.Compare(o.At), cmp.Compare(e.State, o.State), cmp.Compare(e.Error, o.Error)) < 0
}

// Check refuses a record that no honest supernode sends.
func (r Record) Check() error {
	if !IsID(r.ID) {
		return fmt.Errorf("%w: job ID %.40q", ErrInvalid, r.ID)
	}
	if err := r.Spec.Validate(); err != nil {
		return err
	}
	for _, t := range []time.Time{r.Created, r.Spec.Deadline, r.Ended()} {
		// A time that JSON cannot hold would keep a supernode from saving every job.
		if _, err := t.MarshalJSON(); err != nil {
			return fmt.Errorf("%w: a time of job %s: %w", ErrInvalid, r.ID, err)
		}
	}
	if r.Open < 0 || r.Open > ListMax || r.Control.Rev < 0 {
		return fmt.Errorf("%w: job %s has wave %d and revision %d", ErrInvalid, r.ID, r.Open, r.Control.Rev)
	}
	if r.End != nil && (!r.End.State.Ended() || len(r.End.Error) > TextMax) {
		return fmt.Errorf("%w: job %s ended as %.30q", ErrInvalid, r.ID, r.End.State)
	}
	if r.Resolved == nil {
		return nil
	}
	if len(r.Resolved.Objects) > ObjectsMax {
		return fmt.Errorf("%w: job %s has %d objects, at most %d are possible", ErrInvalid, r.ID, len(r.Resolved.Objects),
			ObjectsMax)
	}
	if _, err := oci.ParseDigest(string(r.Resolved.Digest)); err != nil || len(r.Resolved.Objects) == 0 {
		return fmt.Errorf("%w: job %s means %.80q with %d objects", ErrInvalid, r.ID, r.Resolved.Digest,
			len(r.Resolved.Objects))
	}
	return checkObjects(r.Resolved.Objects)
}

func checkObjects(list []Object) error {
	for _, o := range list {
		if _, err := oci.ParseDigest(string(o.ID)); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if o.Kind != task.Blob && o.Kind != task.Manifest || o.Size < 0 || o.Size > piece.LengthMax ||
			len(o.MediaType) > WordMax {
			return fmt.Errorf("%w: object %s of kind %.20q with %d bytes", ErrInvalid, o.ID.Short(), o.Kind, o.Size)
		}
	}
	return nil
}

// Order tells one host what to do for a job. It holds the job's credentials in plain text if the host shall fetch now,
// so it goes over TLS or loopback only, and no log shows it.
type Order struct {
	Job string `json:"job"`
	// Rev is that of the job's Control: an order with a higher one counts.
	Rev int64 `json:"rev"`
	// Run means to fetch now; else the host only reports what it has.
	Run bool `json:"run,omitempty"`
	// Ended means that the job is over: it counts whatever another supernode, which may be gone, said before. The host
	// keeps such an order for its life and reports what it holds; it needs no repetition.
	Ended bool `json:"ended,omitempty"`
	// Upstream and Repository are where the objects are.
	Upstream   string `json:"upstream"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	// Digest is that of the image: reports name it.
	Digest  task.ID  `json:"digest,omitempty"`
	Objects []Object `json:"objects"`
	// Owned restricts a supernode to the objects that it owns.
	Owned bool `json:"owned,omitempty"`
	// Authorization is the header for the registry; empty for what each host may do by itself.
	Authorization string `json:"authorization,omitempty"`
	// LifeMillis is how long the order holds without another word from a supernode.
	LifeMillis int64 `json:"lifeMillis"`
}

// String names the job, so that no verb prints the credentials.
func (o Order) String() string { return "preheat " + o.Job }

// GoString keeps %#v from printing the credentials.
func (o Order) GoString() string { return o.String() }

// Check refuses an order that no honest supernode sends.
func (o Order) Check() error {
	if !IsID(o.Job) || len(o.Objects) > ObjectsMax || len(o.Authorization) > HeadersMax || o.LifeMillis < 0 ||
		len(o.Tag) > WordMax {
		return fmt.Errorf("%w: order for job %.40q with %d objects", ErrInvalid, o.Job, len(o.Objects))
	}
	host, err := oci.ParseHost(o.Upstream)
	if err != nil || host != o.Upstream {
		return fmt.Errorf("%w: order for job %s: registry %.100q", ErrInvalid, o.Job, o.Upstream)
	}
	if _, err := oci.ParseRepository(host, o.Repository); err != nil {
		return fmt.Errorf("%w: order for job %s: %w", ErrInvalid, o.Job, err)
	}
	if o.Digest != "" {
		if _, err := oci.ParseDigest(string(o.Digest)); err != nil {
			return fmt.Errorf("%w: order for job %s: %w", ErrInvalid, o.Job, err)
		}
	}
	return checkObjects(o.Objects)
}

// Report is how far one host is with one job at the time of its announce.
type Report struct {
	Job string `json:"job"`
	// Digest is that of the image in the order that the host has. Supernodes that were apart can have read a tag twice,
	// and mean two images by one job; a report about the other one does not count.
	Digest task.ID `json:"digest,omitempty"`
	// State is Pending (it does not fetch), Running, Success (it holds every object now) or Failed.
	State State `json:"state"`
	Bytes int64 `json:"bytes,omitempty"`
	Total int64 `json:"total,omitempty"`
	// Ended: the host knows that the job is over, so no supernode tells it again.
	Ended bool `json:"ended,omitempty"`
	// Held has a bit for each object of the job, the lowest of the first byte for the first one: it is here whole.
	Held []byte `json:"held,omitempty"`
	// Attempts failed so far, the last one with Error.
	Attempts int    `json:"attempts,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Bounds of the reports in one announce.
const (
	ReportsMax = JobsMax
	ReportMax  = ObjectsMax/8*4/3 + 8*TextMax + 512 // bytes of the JSON of one
)

// Check refuses a report that no honest host sends.
func (r Report) Check() error {
	switch r.State {
	case Pending, Running, Success, Failed:
	default:
		return fmt.Errorf("%w: report with state %.20q", ErrInvalid, r.State)
	}
	if r.Digest != "" {
		if _, err := oci.ParseDigest(string(r.Digest)); err != nil {
			return fmt.Errorf("%w: report about job %.40q: %w", ErrInvalid, r.Job, err)
		}
	}
	if !IsID(r.Job) || len(r.Held) > ObjectsMax/8 || r.Bytes < 0 || r.Total < 0 || r.Attempts < 0 ||
		len(r.Error) > TextMax {
		return fmt.Errorf("%w: report about job %.40q", ErrInvalid, r.Job)
	}
	return nil
}

// Has reports whether the host holds the object of a number.
func (r Report) Has(i int) bool { return i/8 < len(r.Held) && r.Held[i/8]&(1<<(i%8)) != 0 }

// Hold sets the bit of an object.
func (r *Report) Hold(i int) {
	for len(r.Held) <= i/8 {
		r.Held = append(r.Held, 0)
	}
	r.Held[i/8] |= 1 << (i % 8)
}

// Authorization returns the header that a spec's credentials put into requests to the registry.
func (s Spec) Authorization() secret.String {
	for name, value := range s.Headers {
		if strings.EqualFold(name, "Authorization") {
			return value
		}
	}
	return ""
}

// ErrFile reports a job that fetches a file, which this version cannot.
var ErrFile = errors.New("this version preheats images and other objects of registries, and no files yet: " +
	"run dfget on the nodes")
