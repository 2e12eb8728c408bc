// Package preheat decides which hosts fetch an image or a file before somebody needs it, and tells who has it.
//
// It never calls a host ready that does not hold every byte now: a host that joined, died or lost its copy after it was
// ready counts as what it is at this moment. All is a pure function of values; the time is an argument. Start at [Spec]
// and [Job].
package preheat

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// Kind is what a job fetches.
type Kind string

// The kinds of jobs.
const (
	// Image is an object of a registry, named by its reference: an image, an index, a chart or another kind of artefact.
	Image Kind = "image"
	// File is a file at a URL.
	File Kind = "file"
)

// ScopeKind is the set of hosts from which a scope takes its hosts.
type ScopeKind string

// The kinds of scopes.
const (
	OneSeed  ScopeKind = "one-seed"  // the supernodes, each object on the one that owns it
	AllSeeds ScopeKind = "all-seeds" // every live supernode; each asks the registry for what no node holds
	AllNodes ScopeKind = "all-nodes" // every host that announces; supernodes only bring it to them
)

// Scope names the hosts of a job. A host that joins the cluster during the job and matches is in scope from then on.
type Scope struct {
	// Kind is AllNodes if it is empty.
	Kind ScopeKind `json:"kind,omitempty"`
	// Zones are the zones of the hosts; empty for all.
	Zones []string `json:"zones,omitempty"`
	// Labels are those that a host must have, all of them, with these values; empty for all hosts.
	Labels map[string]string `json:"labels,omitempty"`
	// Count is how many hosts of each zone fetch, Percent which part of them (0 to 100, rounded up). Zero means all;
	// at most one of both is set.
	Count   int     `json:"count,omitempty"`
	Percent float64 `json:"percent,omitempty"`
}

// Bounds of a spec; [Spec.Validate] refuses more.
const (
	ReferenceMax = 1024 // bytes of a reference, and of a file's URL twice as many
	ListMax      = 64   // platforms, zones, labels, waves and headers of one spec
	WordMax      = 256  // bytes of one of them
	HeadersMax   = 16 << 10
)

// Spec is what a job does and for which hosts.
type Spec struct {
	Kind Kind `json:"kind"`
	// Reference names an object of a registry, with its registry: "quay.io/app/web:1.2" or "…@sha256:…". Empty for a
	// file.
	Reference string `json:"reference,omitempty"`
	// URL is that of a file; empty for an image. It may hold a signature, so only [Spec.Name] is for people.
	URL string `json:"url,omitempty"`
	// Platforms selects manifests of an index, as "linux/amd64" or "linux/arm64/v8"; empty for all.
	Platforms []string `json:"platforms,omitempty"`
	// Referrers also fetches what refers to the image: signatures, SBOMs.
	Referrers bool `json:"referrers,omitempty"`
	// Headers are sent to the registry or server of the object, and to no other host. They are credentials:
	// no JSON holds them.
	Headers map[string]secret.String `json:"-"`
	Scope   Scope                    `json:"scope"`
	// Waves are parts of the hosts in scope, in percent, each larger than the one before: hosts of a wave begin once
	// the wave before is healthy. Empty for one wave of all.
	Waves []float64 `json:"waves,omitempty"`
	// Deadline ends the job, whatever is missing then; zero for [DeadlineDefault] after its creation.
	Deadline time.Time `json:"deadline,omitzero"`
	// Min is the part of the hosts in scope, in percent, that must have the object; zero for all.
	Min float64 `json:"min,omitempty"`
	// Webhook is called with the gate once the job ends; empty for none. Supernodes store it, so it must hold no secret.
	Webhook string `json:"webhook,omitempty"`
}

// DeadlineDefault is how long a job runs that names no deadline, DeadlineMax how long a job may run.
const (
	DeadlineDefault = 30 * time.Minute
	DeadlineMax     = 7 * 24 * time.Hour
)

// State is the state of a job, or of one task of it.
type State string

// The states.
const (
	Pending   State = "pending"   // nothing has been fetched
	Running   State = "running"   // hosts fetch
	Paused    State = "paused"    // hosts begin nothing further
	Success   State = "success"   // enough hosts have it (a task: this host has it)
	Failed    State = "failed"    // the job ended and too few hosts have it (a task: the last attempt failed)
	Cancelled State = "cancelled" // an operator ended it
)

// Ended reports whether the state is final for a job.
func (s State) Ended() bool { return s == Success || s == Failed || s == Cancelled }

// Job is one order to fetch something, and what became of it.
type Job struct {
	// ID names the job in the cluster: 32 hex digits. Number does too, for callers that want an integer; it is
	// positive and at most 2⁵³−1, so that every JSON parser can hold it.
	ID     string `json:"id"`
	Number int64  `json:"number"`
	Spec   Spec   `json:"spec"`
	State  State  `json:"state"`
	// Created, Updated and Finished are by the clock of the supernode that held the job then; Finished is zero while it
	// runs.
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// Error is why the job failed, for people; it holds no secret.
	Error string `json:"error,omitempty"`
	// Tasks are the objects by host, as the hosts last reported them, at most TasksMax.
	Tasks []TaskState `json:"tasks,omitempty"`
}

// TasksMax bounds the tasks of one [Job].
const TasksMax = 20000

// TaskState is one object on one host.
type TaskState struct {
	// URL is where the object comes from, without secrets.
	URL    string `json:"url,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Host is the host's name, IP the address at which others reach it.
	Host string `json:"host"`
	IP   string `json:"ip,omitempty"`
	Zone string `json:"zone,omitempty"`
	// State is Pending, Running, Success or Failed.
	State State `json:"state"`
	// Bytes are on the host, of Total; Total is 0 while it is unknown.
	Bytes int64 `json:"bytes"`
	Total int64 `json:"total"`
	// Error is why the last attempt failed, for people.
	Error string `json:"error,omitempty"`
}

// ErrInvalid reports a spec that no job can have.
var ErrInvalid = errors.New("invalid preheat")

// Target is the object of a registry that a spec names.
type Target struct {
	Upstream, Repository string
	// Tag or Digest names the manifest; Digest counts if both are set.
	Tag    string
	Digest task.ID
}

// Target parses the reference of an image job. The error wraps [ErrInvalid].
func (s Spec) Target() (t Target, err error) {
	name := strings.TrimPrefix(s.Reference, "oci://") // as Helm names charts
	if len(name) > ReferenceMax {
		return t, fmt.Errorf("%w: a reference of %d bytes, at most %d are possible", ErrInvalid, len(name), ReferenceMax)
	}
	rest, digest, hasDigest := strings.Cut(name, "@")
	if hasDigest {
		if t.Digest, err = oci.ParseDigest(digest); err != nil {
			return t, fmt.Errorf("%w: %.200q: %w", ErrInvalid, s.Reference, err)
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, t.Tag = rest[:i], rest[i+1:]
		if !oci.IsTag(t.Tag) {
			return t, fmt.Errorf("%w: %.200q: %.130q is no tag", ErrInvalid, s.Reference, t.Tag)
		}
	}
	if t.Tag == "" && !hasDigest {
		t.Tag = "latest"
	}
	upstream, repository, ok := oci.SplitPrefix(rest)
	if !ok {
		upstream, repository = oci.DockerHub, rest // as every client completes a name without a registry
	}
	if t.Upstream, err = oci.ParseHost(upstream); err != nil {
		return t, fmt.Errorf("%w: %.200q: %w", ErrInvalid, s.Reference, err)
	}
	if t.Repository, err = oci.ParseRepository(t.Upstream, repository); err != nil {
		return t, fmt.Errorf("%w: %.200q: %w", ErrInvalid, s.Reference, err)
	}
	return t, nil
}

// Name names the object for people, without secrets.
func (s Spec) Name() string {
	if s.Kind == File {
		return secret.PrintableURLText(s.URL)
	}
	return s.Reference
}

// Validate reports why no job can have this spec; the error wraps [ErrInvalid].
func (s Spec) Validate() error {
	switch s.Kind {
	case Image:
		if s.URL != "" {
			return fmt.Errorf("%w: an image has a reference and no url", ErrInvalid)
		}
		if _, err := s.Target(); err != nil {
			return err
		}
	case File:
		if s.Reference != "" || len(s.Platforms) > 0 || s.Referrers {
			return fmt.Errorf("%w: a file has a url, and no reference, platforms and referrers", ErrInvalid)
		}
		if err := validateURL("url", s.URL); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: kind is %.30q; write %q or %q", ErrInvalid, s.Kind, Image, File)
	}
	if s.Webhook != "" {
		if err := validateURL("webhook", s.Webhook); err != nil {
			return err
		}
		if u, err := url.Parse(s.Webhook); err != nil || u.User != nil {
			return fmt.Errorf("%w: the webhook's URL has a user or password, and supernodes store it", ErrInvalid)
		}
	}
	if s.Min < 0 || s.Min > 100 || s.Min != s.Min {
		return fmt.Errorf("%w: min is %v percent; write 0 to 100", ErrInvalid, s.Min)
	}
	last := 0.0
	for _, w := range s.Waves {
		if !(w > last && w <= 100) {
			return fmt.Errorf("%w: wave %v percent; each must be larger than the one before, and at most 100", ErrInvalid,
				w)
		}
		last = w
	}
	if len(s.Waves) > 0 && last != 100 {
		return fmt.Errorf("%w: the last wave is %v percent, and must be 100", ErrInvalid, last)
	}
	return errors.Join(s.Scope.validate(), s.validateLists())
}

// ValidateAt is Validate for a job that begins at a time: its deadline must be ahead, and not too far.
func (s Spec) ValidateAt(now time.Time) error {
	switch in := s.Deadline.Sub(now); {
	case s.Deadline.IsZero():
	case in <= 0:
		return fmt.Errorf("%w: the deadline %s has passed", ErrInvalid, s.Deadline.Format(time.RFC3339))
	case in > DeadlineMax:
		return fmt.Errorf("%w: the deadline %s is more than %d days ahead; begin the job later, or name an earlier one",
			ErrInvalid, s.Deadline.Format(time.RFC3339), int(DeadlineMax.Hours()/24))
	}
	return s.Validate()
}

func (s Spec) validateLists() error {
	size, words := 0, slices.Concat(s.Platforms, s.Scope.Zones)
	for k, v := range s.Scope.Labels {
		words = append(words, k, v)
	}
	for k, v := range s.Headers {
		size += len(k) + len(v)
	}
	if size > HeadersMax || len(s.Headers) > ListMax {
		return fmt.Errorf("%w: headers of %d bytes, at most %d in %d headers are possible", ErrInvalid, size, HeadersMax,
			ListMax)
	}
	for _, n := range []int{len(s.Platforms), len(s.Scope.Zones), len(s.Scope.Labels), len(s.Waves)} {
		if n > ListMax {
			return fmt.Errorf("%w: a list of %d, at most %d are possible", ErrInvalid, n, ListMax)
		}
	}
	for _, w := range words {
		if len(w) > WordMax {
			return fmt.Errorf("%w: %.30q… is longer than %d bytes", ErrInvalid, w, WordMax)
		}
	}
	for _, p := range s.Platforms {
		if n := strings.Count(p, "/"); n < 1 || n > 2 || strings.Contains("/"+p+"/", "//") {
			return fmt.Errorf("%w: platform %.60q; write linux/amd64 or linux/arm64/v8", ErrInvalid, p)
		}
	}
	return nil
}

func (s Scope) validate() error {
	switch s.Kind {
	case "", OneSeed, AllSeeds, AllNodes:
	default:
		return fmt.Errorf("%w: scope %.30q; write %s, %s or %s", ErrInvalid, s.Kind, OneSeed, AllSeeds, AllNodes)
	}
	switch {
	case s.Count < 0:
		return fmt.Errorf("%w: count is %d; write 1 or more", ErrInvalid, s.Count)
	case s.Percent < 0 || s.Percent > 100 || s.Percent != s.Percent:
		return fmt.Errorf("%w: percent is %v; write 0 to 100", ErrInvalid, s.Percent)
	case s.Count > 0 && s.Percent > 0:
		return fmt.Errorf("%w: count and percent exclude each other", ErrInvalid)
	}
	return nil
}

func validateURL(what, text string) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > 2*ReferenceMax || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%w: %s is %s; write a URL with http:// or https:// of at most %d bytes", ErrInvalid, what,
			secret.PrintableURLText(text), 2*ReferenceMax)
	}
	return nil
}
