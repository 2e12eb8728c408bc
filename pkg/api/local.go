package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/task"
)

// Paths of the APIs that operators and dfget use.
const (
	PathStatus = "/api/v1/status" // GET: Status
	PathTasks  = "/api/v1/tasks"  // GET: []TaskStatus; PathTasks + "/" + task ID: one of them
	PathHosts  = "/api/v1/hosts"  // GET: []HostStatus, of an owner
	// PathFiles serves a file (GET). The query is FileURL, FileTag, FileApplication, FileDigest, FileNoCache,
	// FileMaxAge and any number of FileIgnore. Header fields whose names begin with ForwardPrefix go to the origin. The
	// response's ETag is the task's ID in quotes; a Range with an If-Range of that ETag resumes a broken download. A
	// file that is not shared has no ETag, is sent whole despite a Range, and has HeaderUnshared. An error is a
	// FileError in JSON.
	PathFiles = "/api/v1/files"
)

// Query parameters of PathFiles.
const (
	FileURL         = "url"
	FileTag         = "tag"
	FileApplication = "application"
	FileDigest      = "digest"
	FileIgnore      = "ignore"
	FileNoCache     = "no-cache" // "true": no stored bytes (RFC 9111 §5.2.1.4)
	FileMaxAge      = "max-age"  // a duration such as 90s: only bytes fetched since then (§5.2.1.1)
)

const (
	// ForwardPrefix begins the names of header fields that go to the origin.
	ForwardPrefix = "Darter-Forward-"
	// HeaderCached is "true" in a response of PathFiles if the whole file was in the node's cache.
	HeaderCached = "Darter-Cached"
	// HeaderSources holds [Sources] in JSON in a response of PathFiles if the node had all bytes of the download before
	// it answered, so that they are final. Without it, the task's status tells them.
	HeaderSources = "Darter-Sources"
	// HeaderUnshared is in a response of PathFiles if the file comes straight from its origin, for this client alone.
	// Its value is the reason.
	HeaderUnshared = "Darter-Unshared"
)

// FileErrorKind is the kind of an error response of PathFiles.
type FileErrorKind string

// The kinds of errors.
const (
	FileBadRequest  FileErrorKind = "bad-request" // the request itself is wrong
	FileForbidden   FileErrorKind = "forbidden"   // the node's settings do not allow the host
	FileRefused     FileErrorKind = "refused"     // the origin responded with Status
	FileUnreachable FileErrorKind = "unreachable" // the origin did not respond
	FileChanged     FileErrorKind = "changed"     // the file changed during the download
	FileDigestWrong FileErrorKind = "digest"      // the file does not match FileDigest
	FileNoSpace     FileErrorKind = "no-space"    // the node's store is full
	FileInternal    FileErrorKind = "internal"    // anything else
)

// FileError is the body of an error response of PathFiles.
type FileError struct {
	Kind FileErrorKind `json:"kind"`
	// Status is the origin's HTTP status, 0 if it did not respond.
	Status int `json:"status,omitempty"`
	// Untrusted is true if the server's certificate is not trusted (TLS): another attempt would fail in the same way.
	Untrusted bool `json:"untrusted,omitempty"`
	// Final is true if another attempt would soon fail in the same way: a loop of redirects, or a name that does not
	// exist.
	Final bool `json:"final,omitempty"`
	// Message is for people. It names the attempt and the failure, and holds no secret.
	Message string `json:"message"`
}

// Error returns the message.
func (e *FileError) Error() string { return e.Message }

// Code returns the HTTP status of the response: the origin's own status, if there is one.
func (e *FileError) Code() int {
	switch e.Kind {
	case FileBadRequest:
		return http.StatusBadRequest
	case FileForbidden:
		return http.StatusForbidden
	case FileChanged:
		return http.StatusConflict
	case FileNoSpace:
		return http.StatusInsufficientStorage
	case FileInternal:
		return http.StatusInternalServerError
	}
	if e.Status >= 400 && e.Status <= 599 {
		return e.Status
	}
	return http.StatusBadGateway
}

// ParseFileError decodes the body of an error response; ok is false if it is not a FileError.
func ParseFileError(b []byte) (e *FileError, ok bool) {
	e = new(FileError)
	ok = json.Unmarshal(b, e) == nil && e.Kind != ""
	return e, ok
}

// Sources counts bytes by their source.
type Sources struct {
	Peers  int64 `json:"peers"`  // from other nodes
	Seeds  int64 `json:"seeds"`  // from supernodes and other seeds
	Origin int64 `json:"origin"` // from the origin, by the node itself
	Cache  int64 `json:"cache"`  // sent to clients from the node's own store
}

// Total returns the sum.
func (s Sources) Total() int64 { return s.Peers + s.Seeds + s.Origin + s.Cache }

// Status is a program's report about itself.
type Status struct {
	Program string    `json:"program"`
	Version string    `json:"version"`
	Host    host.Host `json:"host"`
	Started time.Time `json:"started"`
	// Ready is true if the program can serve; otherwise Missing names the failed checks.
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"`
	// Received counts the verified bytes that this node received since its start.
	Received Sources `json:"received"`
	// Sent counts the bytes of pieces that it sent to other nodes.
	Sent int64 `json:"sent"`
	// Served counts the bytes that it sent to local clients: pulls and files.
	Served int64 `json:"served"`
	// BadPieces counts pieces whose bytes did not match their digest.
	BadPieces int64 `json:"badPieces"`
	// Downloads is the number of tasks in memory: downloading, read or served. Running are those that a client waits
	// for, at most [RunningMax].
	Downloads int             `json:"downloads"`
	Running   []RunningStatus `json:"running,omitempty"`
	// Pulls counts the outcomes of the requests of local clients, Seeds those of the tasks that an owner fetched from
	// origins, since the start.
	Pulls *Outcomes   `json:"pulls,omitempty"`
	Seeds *Outcomes   `json:"seeds,omitempty"`
	Cache CacheStatus `json:"cache"`
	// Limits are the current rate limits.
	Limits Limits `json:"limits,omitzero"`
	// Owners are the supernodes that this node knows.
	Owners []OwnerStatus `json:"owners,omitempty"`
	// Standbys are the hosts to which this node announces while no supernode answers.
	Standbys []string `json:"standbys,omitempty"`
	// Embedded is true if the node leads its own tasks.
	Embedded bool `json:"embedded,omitempty"`
	// Hosts is the number of hosts that announce to this owner.
	Hosts int `json:"hosts,omitempty"`
	// PurgeFailures are the purge orders that this node could not carry out yet, HostPurgeFailures those of the hosts
	// that announce here.
	PurgeFailures     []PurgeFailure `json:"unfollowed,omitempty"`
	HostPurgeFailures []HostPurge    `json:"unfollowedBy,omitempty"`
	// Clocks is the reason of this owner's last refusal because of a clock, with the name of the host; empty if there
	// was none lately.
	Clocks string `json:"clocks,omitempty"`
	// Uptime is the time since the program's start in seconds, by the monotonic clock.
	Uptime float64 `json:"uptime,omitempty"`
	// Clock is the program's wall clock at the time of the response.
	Clock time.Time `json:"clock,omitzero"`
	// Lost is for how long the program did not run since its start, in seconds: it was stopped, or lacked CPU time. Late
	// is true if it lost half a second or more within the last ten.
	Lost float64 `json:"lost,omitempty"`
	Late bool    `json:"late,omitempty"`
	// RefusedHosts are the hosts whose announces this owner refused lately.
	RefusedHosts []RefusedHost `json:"offenders,omitempty"`
	// Secrets are the cluster secrets in use; none without a secret. RenewingProofs is true while stored signatures get
	// certificates under the first one: until then, no other secret should be removed.
	Secrets        []SecretStatus `json:"secrets,omitempty"`
	RenewingProofs bool           `json:"renewingProofs,omitempty"`
	// Warnings name faults that the operator should repair although the node works.
	Warnings []string `json:"warnings,omitempty"`
	// Listen maps the names of the listeners to their addresses.
	Listen map[string]string `json:"listen,omitempty"`
	// Upstreams are the registries of a dfdaemon's mirror, in the status of its local API alone. Commands that
	// were given no other settings take them from here.
	Upstreams []UpstreamStatus `json:"upstreams,omitempty"`
}

// OnNode reports whether the status is of a node's dfdaemon, and not of a supernode.
func (s Status) OnNode() bool { return s.Program == "dfdaemon" }

// SecretStatus is the use of a cluster secret, without the secret.
type SecretStatus struct {
	// Fingerprint names the secret, the same on every host.
	Fingerprint string `json:"fingerprint"`
	// First is true for the secret that the host itself uses, Removed for one that it accepts no more and whose
	// connections have not ended yet.
	First   bool `json:"first,omitempty"`
	Removed bool `json:"removed,omitempty"`
	// Connections counts the open connections whose other ends proved the secret. Last is the time of the last
	// handshake, Address its other end.
	Connections int       `json:"connections"`
	Last        time.Time `json:"last,omitzero"`
	Address     string    `json:"address,omitempty"`
}

// UpstreamStatus is a registry of the mirror, without credentials.
type UpstreamStatus struct {
	Host      string   `json:"host"`
	URLs      []string `json:"urls,omitempty"`
	PlainHTTP bool     `json:"plainHTTP,omitempty"`
	// CA, ClientCert and ClientKey are paths of files.
	CA         string `json:"ca,omitempty"`
	ClientCert string `json:"clientCert,omitempty"`
	ClientKey  string `json:"clientKey,omitempty"`
}

// RefusedHost is a host whose announces were refused.
type RefusedHost struct {
	// ID is the host's ID, empty if it announces with many IDs; Addr is the address from which it announced.
	ID     host.ID   `json:"id,omitempty"`
	Addr   string    `json:"addr"`
	Reason string    `json:"reason"`
	Times  int       `json:"times"`
	Last   time.Time `json:"last"`
}

// RunningMax bounds the running downloads in a [Status].
const RunningMax = 100

// RunningStatus is one download that a client waits for.
type RunningStatus struct {
	ID task.ID `json:"id"`
	// Name is registry and repository, or the URL of a file without its query.
	Name   string `json:"name,omitempty"`
	Length int64  `json:"length"` // bytes; −1 while unknown
	Have   int64  `json:"have"`   // bytes in the store, in whole pieces
	// Received counts this download's bytes by source.
	Received Sources `json:"received"`
	// Quiet is the time since the last piece, in seconds.
	Quiet float64 `json:"quiet"`
}

// Outcomes counts ended pulls or seeds by their result.
type Outcomes struct {
	OK       int64 `json:"ok"`
	Refused  int64 `json:"refused"`  // by the origin
	Failed   int64 `json:"failed"`   // by an error of this host, of the origin or of the network
	Canceled int64 `json:"canceled"` // by the client
	// Last is the end of the last one.
	Last time.Time `json:"last,omitzero"`
	// Failure is the last one that failed.
	Failure *Failed `json:"failure,omitempty"`
}

// Failed is a pull or seed that failed.
type Failed struct {
	At    time.Time `json:"at"`
	Name  string    `json:"name,omitempty"`
	Error string    `json:"error"`
}

// Limits are the rate limits of a node, in bytes per second; 0 is no limit.
type Limits struct {
	Upload   int64 `json:"upload,omitempty"`   // of pieces to other nodes
	Download int64 `json:"download,omitempty"` // of pieces from other nodes and of bytes from origins
	Task     int64 `json:"task,omitempty"`     // of each task that the node downloads
	Origin   int64 `json:"origin,omitempty"`   // of bytes from origins
}

// CacheStatus is the current use of a node's store.
type CacheStatus struct {
	Dir   string `json:"dir,omitempty"`
	Tasks int    `json:"tasks"`
	// Bytes is the space that counts against the quota: the whole length of each task, even if a part is stored. Quota
	// bounds Bytes; 0 is no quota.
	Bytes int64 `json:"bytes"`
	Quota int64 `json:"quota,omitempty"`
}

// OwnerStatus is a supernode as a node sees it.
type OwnerStatus struct {
	Addr  string `json:"addr"`
	Alive bool   `json:"alive"`
	Error string `json:"error,omitempty"`
	// Skew is how far its clock is ahead of this node's, in seconds, negative if it is behind; 0 if it is unknown or
	// less than a second.
	Skew float64 `json:"skew,omitempty"`
	// Standby is true for a dfdaemon that leads tasks while no supernode answers.
	Standby bool `json:"standby,omitempty"`
}

// TaskStatus is one task on one node.
type TaskStatus struct {
	ID     task.ID `json:"id"`
	Length int64   `json:"length"` // bytes; −1 while unknown
	Pieces int     `json:"pieces"`
	Have   int     `json:"have"` // pieces
	// Received counts this download's bytes by source.
	Received Sources `json:"received"`
	// LastRead is zero where one task was asked for that is open now.
	LastRead time.Time `json:"lastRead,omitzero"`
}

// HostStatus is one host as its owner sees it.
type HostStatus struct {
	host.Host
	Tasks int       `json:"tasks"`
	Seen  time.Time `json:"seen"`
}
