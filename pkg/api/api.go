// Package api holds the shapes on the control wire between hosts and owners.
//
// Every shape carries or inherits a version, unknown fields are ignored, and an absent field means what
// the protocol meant before the field existed, so that neighbouring versions talk. Every field has a
// writer and a reader. Nothing here decides or sends anything. Start at [AnnounceRequest].
package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// Version is the version of the control wire that this code speaks.
const Version = 1

// PathAnnounce is where an owner takes announces (POST, JSON).
const PathAnnounce = "/api/v1/announce"

// HeaderClock is the owner's wall clock (RFC 3339) in each response to an announce, also in a refusal.
// Owners of a former version send only the Date of HTTP (RFC 9110, section 6.6.1).
const HeaderClock = "Darter-Clock"

// Bounds on what one message may hold; an owner refuses more.
const (
	EntriesMax   = 4096     // entries in one announce
	AnnounceMax  = 16 << 20 // bytes of one announce
	InlineMax    = 64 << 10 // inline bytes of one assignment
	WindowsMax   = 16       // windows of one entry
	SeedsMax     = 4        // seeds of one entry
	FailureMax   = 8 << 10  // bytes of an origin's error body
	NeighboursIn = 64       // neighbours in one assignment
	StandbysMax  = 8        // standbys in one response
)

// StatusInUse is the status of an announce whose host ID belongs to another live host: the host then
// takes another ID.
const StatusInUse = http.StatusConflict

// StatusClock is the status of an announce whose host's clock is too far from the owner's. It differs
// from [StatusInUse], because a host must not give up its ID because of a clock.
const StatusClock = http.StatusPreconditionFailed

// Event is what happened to a task on the announcing host.
type Event string

// The events.
const (
	Started   Event = "started"   // it wants the task; Spec says how to get it from the origin
	Progress  Event = "progress"  // it has more pieces than before
	Completed Event = "completed" // it holds everything (also each line of an inventory)
	Stopped   Event = "stopped"   // it neither wants nor serves the task any longer
	Starving  Event = "starving"  // it wants pieces that none of its neighbours has
)

// AnnounceRequest is what one host announces to one owner, one entry for each task.
type AnnounceRequest struct {
	Version int       `json:"version"`
	Host    host.Host `json:"host"`
	// Generation is drawn at the host's start: an owner that sees a new one forgets what the host
	// announced before.
	Generation uint64  `json:"generation"`
	Entries    []Entry `json:"entries,omitempty"`
	// Standby means that the host itself takes announces and lookups, at its own address, and leads
	// tasks of other hosts while no owner answers.
	Standby bool `json:"standby,omitempty"`
	// Leaving means that the host leaves now, with everything that it holds.
	Leaving bool `json:"leaving,omitempty"`
	// Joined means that the host was a member of the cluster already: an owner that has just started does not know yet
	// what the cluster holds.
	Joined bool `json:"joined,omitempty"`
	// Clock is the host's wall clock as it sent this; zero in a former version.
	Clock time.Time `json:"clock,omitzero"`
	// PurgeMark is the last mark of this owner whose purge orders the host knows, PurgeFailures
	// those that it could not carry out yet.
	PurgeMark     string         `json:"withdrawn,omitempty"`
	PurgeFailures []PurgeFailure `json:"unfollowed,omitempty"`
	// Preheats says how far the host is with the jobs for which it has orders, at most [preheat.ReportsMax].
	Preheats []preheat.Report `json:"preheats,omitempty"`
	// Labels are the host's, for the scopes of preheats; at most [preheat.ListMax].
	Labels map[string]string `json:"labels,omitempty"`
}

// Entry is what a host announces about one task.
type Entry struct {
	Task  task.ID `json:"task"`
	Event Event   `json:"event"`
	Have  int     `json:"have"` // pieces
	// Spec comes with Started and Starving.
	Spec *Spec `json:"spec,omitempty"`
	// Silent lists neighbours in this task that did not answer or whose process ended.
	Silent []host.ID `json:"silent,omitempty"`
	// Left lists neighbours that answered and do not take part in this task, or no longer.
	Left []host.ID `json:"left,omitempty"`
	// Seeds lists neighbours that bring the task from its origin now, at most SeedsMax: an owner that learns of the
	// task leaves the origin to them. Absent: there are none, or a former version does not say.
	Seeds []host.ID `json:"seeds,omitempty"`
	// Moved comes with Stopped: the host announces the task to another owner now. An owner that hears it leaves the origin
	// to that one for a moment.
	Moved bool `json:"moved,omitempty"`
	// Need is how many more neighbours the host can use; 0 asks for none.
	Need int `json:"need,omitempty"`
	// Windows are those for which readers on the host wait and that no neighbour has, at most WindowsMax.
	Windows []Window `json:"windows,omitempty"`
}

// Window is a part of a task that a reader waits for.
type Window struct {
	Offset int64 `json:"offset"` // in bytes
	Length int64 `json:"length"`
	// Tail says that the reader takes the task's last piece before the whole is checked, Begins that it has got no
	// byte yet.
	Tail   bool `json:"tail,omitempty"`
	Begins bool `json:"begins,omitempty"`
}

// Tail is a part of a task's last piece that came from the origin before the whole was checked. A host gives
// it only to readers that check what they get, and stores it nowhere.
type Tail struct {
	Offset int64  `json:"offset"` // in bytes
	Data   []byte `json:"data"`
	// Proof vouches for Data, as an object of its own whose name [TailTask] makes.
	Proof *Proof `json:"proof"`
}

// TailTask returns the name under which a part of a task's last piece is signed before the whole is checked: the
// signature says nothing of the task itself.
func TailTask(id task.ID, offset int64) task.ID {
	sum := sha256.Sum256(fmt.Appendf(nil, "darter tail %s %d", id, offset))
	return task.ID("file:" + hex.EncodeToString(sum[:]))
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
	// Owners are the API addresses of all live owners; empty: the owner does not say.
	Owners []string `json:"owners,omitempty"`
	// Standbys are the addresses of the hosts that lead while no owner answers, the same for all
	// hosts; empty: the owner does not say.
	Standbys []string `json:"standbys,omitempty"`
	// EarlyStandbys are the same of an owner that has just started: hosts that it has not heard of yet may change
	// them. A host uses them while it has no Standbys.
	EarlyStandbys []string `json:"earlyStandbys,omitempty"`
	// PurgeMark is the mark of all purge orders that the owner knows: a host that does not know this
	// mark fetches them (PathPurgeOrders). Empty: there are none.
	PurgeMark string `json:"withdrawn,omitempty"`
	// PreheatMark is the mark of the owner's preheat orders for this host: a host that does not know this mark fetches
	// them (PathPreheatOrders). Empty: there are none.
	PreheatMark string `json:"preheat,omitempty"`
}

// Assignment is an owner's answer to one entry.
type Assignment struct {
	Task task.ID `json:"task"`
	// Neighbours are live hosts to exchange pieces with.
	Neighbours []Neighbour `json:"neighbours,omitempty"`
	// Seed sends the host to the origin itself, while it serves its neighbours.
	Seed bool `json:"seed,omitempty"`
	// Reading says that the owner itself, or a host that it sent, gets the task from its origin now, which may take
	// its time.
	Reading bool `json:"reading,omitempty"`
	// Parts says that other hosts have parts of the task. Only a host's own coordinator tells it so.
	Parts bool `json:"-"`
	// Local restricts the host to neighbours of its own zone: the zone's gateways bring pieces
	// there. Absent: it is a gateway itself, or there is one zone.
	Local bool `json:"local,omitempty"`
	// Metadata come as soon as they are known; until then they follow on the piece wire.
	Metadata *piece.Metadata `json:"facts,omitempty"`
	// Inline is the whole task when it is small and the owner holds it.
	Inline []byte `json:"inline,omitempty"`
	// Proof vouches for Inline, or for a task that is empty. Without it, a host takes only bytes that
	// match the digest in the task's name; others come on the piece wire.
	Proof *Proof `json:"proof,omitempty"`
	// Tail answers a window that asks for it.
	Tail *Tail `json:"tail,omitempty"`
	// Failure is the origin's own refusal, when the owner met one a moment ago.
	Failure *Failure `json:"failure,omitempty"`
}

// Neighbour is a host to exchange pieces with.
type Neighbour struct {
	host.Host
	// Reason is why the owner chose it, for people who read the wire.
	Reason string `json:"reason,omitempty"`
}

// Failure is why an origin did not give a task, as far as possible in the origin's own answer.
type Failure struct {
	// Status is the origin's HTTP status, or 502 where there was no answer and 504 where it came too
	// late.
	Status int `json:"status"`
	// Header holds those of the origin's headers that a client needs: Content-Type,
	// Retry-After, WWW-Authenticate.
	Header map[string]string `json:"header,omitempty"`
	// Body is the origin's own, cut at FailureMax.
	Body []byte `json:"body,omitempty"`
	// Upstream and Repository are where the answer came from, if from a registry. It means nothing to
	// clients that want the same blob from another registry.
	Upstream   string `json:"upstream,omitempty"`
	Repository string `json:"repository,omitempty"`
	// Asker is [task.Spec.Asker] of the request that the origin answered. Header and Body are for its equals only: an
	// origin's words may name what is private.
	Asker string `json:"asker,omitempty"`
	// Message is for people. It names the attempt and the failure, and holds no secret.
	Message string `json:"message"`
	// Wrong means that the bytes do not match the digest.
	Wrong bool `json:"wrong,omitempty"`
	// Changed means that the origin has another version now than the one in the spec.
	Changed bool `json:"changed,omitempty"`
	// Promise means that the blob is not as long as the client's manifest says; another manifest may
	// say otherwise.
	Promise bool `json:"promise,omitempty"`
	// Unshared means that the origin's response may not be shared, although its response to a HEAD
	// allowed it: each client gets the file straight from the origin.
	Unshared bool `json:"unshared,omitempty"`
	// Full means that a disk has no space for the task, here or at the seed: the origin is not the
	// cause.
	Full bool `json:"full,omitempty"`
}

// Personal reports whether the failure may concern only the client that asked, and not clients with
// other credentials or another manifest. Registries also answer 404 for what they hide from a client.
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

// Error is the message: a Failure is the error that readers of a download get.
func (f *Failure) Error() string { return f.Message }

// Spec is the wire shape of a [task.Spec]. Its secrets are in plain text here, so it goes to owners
// only, over TLS or loopback only, and no log shows it.
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
	Hint          int64             `json:"hint,omitempty"`
	Accept        []string          `json:"accept,omitempty"`
	Tag           string            `json:"tag,omitempty"`
	Authorization string            `json:"authorization,omitempty"`
	Agent         string            `json:"agent,omitempty"`
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
	return slog.GroupValue(
		slog.String("task", string(e.Task)), slog.String("event", string(e.Event)), slog.Int("have", e.Have))
}

// LogValue keeps log/slog from showing the secrets in the entries' specs.
func (r AnnounceRequest) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("host", string(r.Host.ID)), slog.Int("entries", len(r.Entries)), slog.Bool("leaving", r.Leaving))
}

// NewSpec reveals the secrets of a spec for the wire.
func NewSpec(s task.Spec) *Spec {
	out := &Spec{
		ID: s.ID, Kind: s.Kind, Upstream: s.Upstream, Repository: s.Repository, URL: s.URL, Digest: s.Digest,
		Validator: s.Validator, Length: s.Length, Promised: s.Promised, Hint: s.Hint, Accept: s.Accept, Tag: s.Tag,
		Authorization: s.Authorization.Reveal(), Agent: s.Agent,
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
		Validator: s.Validator, Length: s.Length, Promised: s.Promised, Hint: s.Hint, Accept: s.Accept, Tag: s.Tag,
		Authorization: secret.String(s.Authorization), Agent: s.Agent,
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
