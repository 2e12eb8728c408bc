// Package api holds the shapes on the control wire between hosts and owners.
//
// Every shape carries or inherits a version, unknown fields are ignored, and what is
// absent means what it meant before the field existed, so that neighbouring versions talk.
// Nothing here decides or sends anything. Start at [AnnounceRequest].
package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// Version is the version of the control wire that this code speaks.
const Version = 1

// PathAnnounce is where an owner takes announces (POST, JSON).
const PathAnnounce = "/api/v1/announce"

// HeaderClock is the owner's wall clock (RFC 3339) on each answer to an announce, a refusal too.
// Owners of a former version tell it by the Date of HTTP alone (RFC 9110, section 6.6.1).
const HeaderClock = "Darter-Clock"

// Bounds on what one message may hold; an owner refuses more.
const (
	EntriesMax   = 4096     // entries in one announce
	AnnounceMax  = 16 << 20 // bytes of one announce
	InlineMax    = 64 << 10 // bytes of content inside an answer
	FailureMax   = 8 << 10  // bytes of an origin's error body
	NeighboursIn = 64       // neighbours in one assignment
	StandbysMax  = 8        // standbys in one answer
)

// StatusInUse is the status of an announce whose host ID belongs to another live host: the host
// that hears it takes another ID.
const StatusInUse = http.StatusConflict

// StatusClock is the status of an announce whose host's clock is too far from the owner's. It is another
// one than [StatusInUse]: a host must not give up its ID because of a clock.
const StatusClock = http.StatusPreconditionFailed

// Event is what happened to a task on the announcing host.
type Event string

// The events.
const (
	Started   Event = "started"   // it wants the content; Spec tells how to bring it
	Progress  Event = "progress"  // it has more pieces than before
	Completed Event = "completed" // it holds everything (also each line of an inventory)
	Stopped   Event = "stopped"   // it wants the content no more and serves it no more
	Starving  Event = "starving"  // it wants pieces and nobody it knows has them
)

// AnnounceRequest is one host's news for one owner, a task an entry.
type AnnounceRequest struct {
	Version int       `json:"version"`
	Host    host.Host `json:"host"`
	// Generation is drawn at the host's start: an owner that sees a new one forgets what
	// the host's former life announced.
	Generation uint64  `json:"generation"`
	Entries    []Entry `json:"entries,omitempty"`
	// Standby says that the host takes announces and questions itself, at its own address, and
	// leads tasks of others while no owner answers them.
	Standby bool `json:"standby,omitempty"`
	// Leaving says that the host goes away now, with everything it holds.
	Leaving bool `json:"leaving,omitempty"`
	// Clock is the host's wall clock as it sent this; zero in a former version.
	Clock time.Time `json:"clock,omitzero"`
	// PurgeMark is the last mark of this owner whose purge orders the host has taken in, PurgeFailures
	// those that it could not carry out yet.
	PurgeMark     string         `json:"withdrawn,omitempty"`
	PurgeFailures []PurgeFailure `json:"unfollowed,omitempty"`
}

// Entry is the news of one task.
type Entry struct {
	Task  task.ID `json:"task"`
	Event Event   `json:"event"`
	Have  int     `json:"have"` // pieces
	// Spec comes with Started and Starving.
	Spec *Spec `json:"spec,omitempty"`
	// Silent lists neighbours in this task that did not answer or are gone.
	Silent []host.ID `json:"silent,omitempty"`
	// Need is how many more neighbours the host can use; 0 asks for none.
	Need int `json:"need,omitempty"`
}

// AnnounceResponse answers an AnnounceRequest.
type AnnounceResponse struct {
	Version int `json:"version"`
	// Assignments answer the request's entries, in their order.
	Assignments []Assignment `json:"assignments,omitempty"`
	// IntervalMillis is when the host should announce again at the latest.
	IntervalMillis int `json:"intervalMillis"`
	// Resync asks for the host's whole inventory: this owner does not know the host.
	Resync bool `json:"resync,omitempty"`
	// Owners are the API addresses of all live owners; empty means "no news".
	Owners []string `json:"owners,omitempty"`
	// Standbys are the addresses of the hosts to ask instead while no owner answers, the same for
	// all hosts; empty means "no news".
	Standbys []string `json:"standbys,omitempty"`
	// PurgeMark is the mark of all purge orders that the owner knows: a host that has not taken in this
	// mark fetches them (PathPurgeOrders). Empty: there are none.
	PurgeMark string `json:"withdrawn,omitempty"`
}

// Assignment is an owner's answer to one entry.
type Assignment struct {
	Task task.ID `json:"task"`
	// Neighbours are live hosts to exchange pieces with.
	Neighbours []Neighbour `json:"neighbours,omitempty"`
	// Seed tells the asker to bring the content from the origin itself, while it serves
	// its neighbours.
	Seed bool `json:"seed,omitempty"`
	// Local tells the asker to take pieces from its own zone alone: the zone's gateways
	// bring them there. Absent, it is a gateway itself, or there is one zone.
	Local bool `json:"local,omitempty"`
	// Metadata are told as soon as they are known; until then they follow on the wire.
	Metadata *piece.Metadata `json:"facts,omitempty"`
	// Inline is the whole content when it is small and the owner holds it.
	Inline []byte `json:"inline,omitempty"`
	// Proof vouches for Inline, or for content that is empty. Without it, only content is taken
	// that matches the digest in the task's name: the rest comes on the piece wire.
	Proof *Proof `json:"proof,omitempty"`
	// Failure is the origin's own refusal, when the owner met one a moment ago.
	Failure *Failure `json:"failure,omitempty"`
}

// Neighbour is a host to exchange pieces with.
type Neighbour struct {
	host.Host
	// Reason says why the owner chose it, for people who look at the wire.
	Reason string `json:"reason,omitempty"`
}

// Failure is why an origin did not give a content, in the origin's own words.
type Failure struct {
	// Status is the origin's HTTP status, or 502 where there was no answer and 504 where
	// it came too late.
	Status int `json:"status"`
	// Header holds those of the origin's headers that a client needs: Content-Type,
	// Retry-After, WWW-Authenticate.
	Header map[string]string `json:"header,omitempty"`
	// Body is the origin's own, cut at FailureMax.
	Body []byte `json:"body,omitempty"`
	// Upstream and Repository are whose words they are, where a registry spoke. The same
	// content may be wanted of other registries, too, to whose clients they mean nothing.
	Upstream   string `json:"upstream,omitempty"`
	Repository string `json:"repository,omitempty"`
	// Message says for people what was tried and how it failed; it holds no secret.
	Message string `json:"message"`
	// Wrong says that the content came and does not match its digest.
	Wrong bool `json:"wrong,omitempty"`
	// Changed says that the origin has another version now than the one that was asked for.
	Changed bool `json:"changed,omitempty"`
	// Promise says that the content is not as long as a manifest had promised to whoever asked;
	// another manifest may promise otherwise.
	Promise bool `json:"promise,omitempty"`
	// Unshared says that the origin's answer may not be shared as was decided on the word of its answer to
	// a HEAD: each client gets the file straight from the origin.
	Unshared bool `json:"unshared,omitempty"`
	// Full says that a disk has no room for the content, here or at the host that was to bring
	// it: the origin has no part in it.
	Full bool `json:"full,omitempty"`
}

// Personal reports whether the failure may be about whoever asked, and be none of those who come
// with other credentials, or with another manifest. Registries answer 404, too, for what they do not
// show to a client.
func (f *Failure) Personal() bool {
	if f.Promise {
		return true
	}
	switch f.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return false
}

// Error makes a Failure an error that every reader of a download can be told.
func (f *Failure) Error() string { return f.Message }

// Spec is the wire shape of a [task.Spec]. Its secrets are plain here, so it goes over
// TLS or loopback only, to owners only, and is never logged.
type Spec struct {
	ID            task.ID           `json:"id"`
	Kind          task.Kind         `json:"kind"`
	Upstream      string            `json:"upstream,omitempty"`
	Repository    string            `json:"repository,omitempty"`
	URL           string            `json:"url,omitempty"`
	Digest        string            `json:"digest,omitempty"`
	Validator     string            `json:"validator,omitempty"`
	Length        int64             `json:"length,omitempty"`
	Promised      int64             `json:"promised,omitempty"`
	Accept        []string          `json:"accept,omitempty"`
	Authorization string            `json:"authorization,omitempty"`
	Header        map[string]string `json:"header,omitempty"`
	// Share is among whom a file may be shared; see package sharing.
	Share string `json:"share,omitempty"`
	// Alone keeps the task on the host that wants it.
	Alone bool `json:"-"`
}

// String names the task, so that no verb prints the secrets.
func (s Spec) String() string { return string(s.Kind) + " " + string(s.ID) }

// Format keeps every verb from printing the secrets.
func (s Spec) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue keeps log/slog from showing the secrets.
func (s Spec) LogValue() slog.Value { return slog.StringValue(s.String()) }

// LogValue keeps log/slog from showing the secrets in Spec.
func (e Entry) LogValue() slog.Value {
	return slog.GroupValue(slog.String("task", string(e.Task)), slog.String("event", string(e.Event)), slog.Int("have", e.Have))
}

// LogValue keeps log/slog from showing the secrets in the entries' specs.
func (r AnnounceRequest) LogValue() slog.Value {
	return slog.GroupValue(slog.String("host", string(r.Host.ID)), slog.Int("entries", len(r.Entries)), slog.Bool("leaving", r.Leaving))
}

// NewSpec reveals a spec for the wire.
func NewSpec(s task.Spec) *Spec {
	out := &Spec{
		ID: s.ID, Kind: s.Kind, Upstream: s.Upstream, Repository: s.Repository, URL: s.URL, Digest: s.Digest,
		Validator: s.Validator, Length: s.Length, Promised: s.Promised, Accept: s.Accept, Authorization: s.Authorization.Reveal(),
		Share: s.Share, Alone: s.Alone,
	}
	for k, v := range s.Header {
		if out.Header == nil {
			out.Header = make(map[string]string, len(s.Header))
		}
		out.Header[k] = v.Reveal()
	}
	return out
}

// Task hides the secrets again.
func (s *Spec) Task() task.Spec {
	out := task.Spec{
		ID: s.ID, Kind: s.Kind, Upstream: s.Upstream, Repository: s.Repository, URL: s.URL, Digest: s.Digest,
		Validator: s.Validator, Length: s.Length, Promised: s.Promised, Accept: s.Accept, Authorization: secret.String(s.Authorization),
		Share: s.Share, Alone: s.Alone,
	}
	for k, v := range s.Header {
		if out.Header == nil {
			out.Header = make(map[string]secret.String, len(s.Header))
		}
		out.Header[k] = secret.String(v)
	}
	return out
}
