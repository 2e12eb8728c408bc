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
	// PathFiles gives a file (GET). The query is FileURL, FileTag, FileApplication,
	// FileDigest, FileNoCache, FileMaxAge and any number of FileIgnore; the origin's headers come
	// as header fields whose names begin with ForwardPrefix. The answer's ETag is the task's ID in
	// quotes; a Range with an If-Range of that ETag takes up a broken download. A file that is
	// shared with nobody has no ETag, comes whole whatever the Range, and says so by
	// HeaderUnshared. An error is a FileError in JSON.
	PathFiles = "/api/v1/files"
)

// Query parameters of PathFiles.
const (
	FileURL         = "url"
	FileTag         = "tag"
	FileApplication = "application"
	FileDigest      = "digest"
	FileIgnore      = "ignore"
	FileNoCache     = "no-cache" // "true": nothing that was stored before (RFC 9111 §5.2.1.4)
	FileMaxAge      = "max-age"  // a duration, as in 90s: nothing brought longer ago (§5.2.1.1)
)

const (
	// ForwardPrefix begins the names of header fields that are meant for the origin.
	ForwardPrefix = "Darter-Forward-"
	// HeaderCached is "true" on the answer of PathFiles when the whole file was in the
	// node's cache.
	HeaderCached = "Darter-Cached"
	// HeaderUnshared is on the answer of PathFiles when the file comes straight from its origin,
	// for this client alone; it says why.
	HeaderUnshared = "Darter-Unshared"
)

// FileErrorKind says which case a refusal of PathFiles is.
type FileErrorKind string

// The kinds of refusal.
const (
	FileBadRequest  FileErrorKind = "bad-request" // the request itself is wrong
	FileForbidden   FileErrorKind = "forbidden"   // the node's settings do not allow the host
	FileRefused     FileErrorKind = "refused"     // the origin answered with Status
	FileUnreachable FileErrorKind = "unreachable" // the origin did not answer
	FileChanged     FileErrorKind = "changed"     // the file changed during the download
	FileDigestWrong FileErrorKind = "digest"      // the whole does not match FileDigest
	FileNoSpace     FileErrorKind = "no-space"    // the node's store is full
	FileInternal    FileErrorKind = "internal"    // anything else
)

// FileError is the body of a refusal of PathFiles.
type FileError struct {
	Kind FileErrorKind `json:"kind"`
	// Status is the origin's, 0 when it did not answer.
	Status int `json:"status,omitempty"`
	// Untrusted says that what answered proved to be nobody whom this host believes (TLS):
	// another try would end alike.
	Untrusted bool `json:"untrusted,omitempty"`
	// Final says that another try soon would end alike: a loop of redirects, or a name that does not exist.
	Final bool `json:"final,omitempty"`
	// Message says for people what was tried and how it failed; it holds no secret.
	Message string `json:"message"`
}

// Error is the message.
func (e *FileError) Error() string { return e.Message }

// Code is the HTTP status that the refusal is answered with: the origin's own, where there is
// one.
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

// ParseFileError reads the body of a refusal; ok is false where it is something else's.
func ParseFileError(b []byte) (e *FileError, ok bool) {
	e = new(FileError)
	ok = json.Unmarshal(b, e) == nil && e.Kind != ""
	return e, ok
}

// Sources counts bytes by where a node got them.
type Sources struct {
	Peers  int64 `json:"peers"`  // from other nodes
	Seeds  int64 `json:"seeds"`  // from supernodes and other seeds
	Origin int64 `json:"origin"` // from the origin, by the node itself
	Cache  int64 `json:"cache"`  // sent to clients from the node's own store
}

// Total is the sum.
func (s Sources) Total() int64 { return s.Peers + s.Seeds + s.Origin + s.Cache }

// Status is what a program tells of itself.
type Status struct {
	Program string    `json:"program"`
	Version string    `json:"version"`
	Host    host.Host `json:"host"`
	Started time.Time `json:"started"`
	// Ready says that it can serve; Missing names what it lacks otherwise.
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing,omitempty"`
	// Received counts the bytes of content that this node took in, since its start.
	Received Sources `json:"received"`
	// Sent counts the bytes of pieces that it gave to other nodes.
	Sent int64 `json:"sent"`
	// Served counts the bytes that it gave to local clients: pulls and files.
	Served int64 `json:"served"`
	// BadPieces counts pieces whose bytes did not match their digest.
	BadPieces int64 `json:"badPieces"`
	// Downloads is the number of tasks that run or are open now; Running are those of them
	// that somebody waits for, at most [RunningMax].
	Downloads int             `json:"downloads"`
	Running   []RunningStatus `json:"running,omitempty"`
	// Pulls is what became of the contents that local clients asked for, Seeds of those that
	// an owner had to bring, since the start.
	Pulls *Outcomes   `json:"pulls,omitempty"`
	Seeds *Outcomes   `json:"seeds,omitempty"`
	Cache CacheStatus `json:"cache"`
	// Limits are the rates in force.
	Limits Limits `json:"limits,omitzero"`
	// Owners are the supernodes that this node knows.
	Owners []OwnerStatus `json:"owners,omitempty"`
	// Standbys are the hosts that this node would ask while none of them answers.
	Standbys []string `json:"standbys,omitempty"`
	// Embedded says that the node leads its own tasks.
	Embedded bool `json:"embedded,omitempty"`
	// Hosts is the number of hosts that announce to this owner.
	Hosts int `json:"hosts,omitempty"`
	// PurgeFailures are the purge orders that this node could not carry out so far, HostPurgeFailures those
	// of the hosts that announce here.
	PurgeFailures     []PurgeFailure `json:"unfollowed,omitempty"`
	HostPurgeFailures []HostPurge    `json:"unfollowedBy,omitempty"`
	// Clocks says which host this owner refused last because of its clock, and why; empty where it
	// refused none lately.
	Clocks string `json:"clocks,omitempty"`
	// Uptime is for how long the program has run, in seconds, by a clock that nobody sets.
	Uptime float64 `json:"uptime,omitempty"`
	// Clock is the program's wall clock at the time of the answer.
	Clock time.Time `json:"clock,omitzero"`
	// Offenders are the hosts whose announces this owner refused lately.
	Offenders []Offender `json:"offenders,omitempty"`
	// Warnings are what an operator should mend, though the node does its work.
	Warnings []string `json:"warnings,omitempty"`
	// Listen tells the addresses in use by what they are for.
	Listen map[string]string `json:"listen,omitempty"`
}

// Offender is a host whose announces were refused.
type Offender struct {
	// ID is that of the host, empty where it invents them; Addr is where it announced from.
	ID     host.ID   `json:"id,omitempty"`
	Addr   string    `json:"addr"`
	Reason string    `json:"reason"`
	Times  int       `json:"times"`
	Last   time.Time `json:"last"`
}

// RunningMax is how many running downloads a [Status] tells at most.
const RunningMax = 100

// RunningStatus is one download that somebody waits for.
type RunningStatus struct {
	ID task.ID `json:"id"`
	// Name is registry and repository, or the URL of a file without its query.
	Name   string `json:"name,omitempty"`
	Length int64  `json:"length"` // bytes; −1 while not known
	Have   int64  `json:"have"`   // bytes that are here, in whole pieces
	// Received counts this download's bytes by source.
	Received Sources `json:"received"`
	// Quiet is for how long no piece has come, in seconds.
	Quiet float64 `json:"quiet"`
}

// Outcomes counts how contents ended.
type Outcomes struct {
	OK       int64 `json:"ok"`
	Refused  int64 `json:"refused"`  // the origin said no
	Failed   int64 `json:"failed"`   // an error of ours, of the origin or of the network
	Canceled int64 `json:"canceled"` // the client went away
	// Last is when the last one ended.
	Last time.Time `json:"last,omitzero"`
	// Failure is the last one that failed.
	Failure *Failed `json:"failure,omitempty"`
}

// Failed is a content that could not be had.
type Failed struct {
	At    time.Time `json:"at"`
	Name  string    `json:"name,omitempty"`
	Error string    `json:"error"`
}

// Limits are the rates that a node keeps to, in bytes per second; 0 is no limit.
type Limits struct {
	Upload   int64 `json:"upload,omitempty"`   // of pieces to other nodes
	Download int64 `json:"download,omitempty"` // of pieces from other nodes and of content from origins
	Task     int64 `json:"task,omitempty"`     // of each content that comes in
	Origin   int64 `json:"origin,omitempty"`   // of content from origins
}

// CacheStatus is what a node's store holds.
type CacheStatus struct {
	Dir   string `json:"dir,omitempty"`
	Tasks int    `json:"tasks"`
	// Bytes is what the quota counts, each task with its whole length however much of it is
	// here; Quota is the most that it may be, 0 without one.
	Bytes int64 `json:"bytes"`
	Quota int64 `json:"quota,omitempty"`
}

// OwnerStatus is a supernode as a node sees it.
type OwnerStatus struct {
	Addr  string `json:"addr"`
	Alive bool   `json:"alive"`
	Error string `json:"error,omitempty"`
	// Skew is by how much its clock is ahead of this node's, in seconds, negative where it is
	// behind; 0 while that is not known or less than a second.
	Skew float64 `json:"skew,omitempty"`
	// Standby says that it is another dfdaemon, which stands in while no supernode answers.
	Standby bool `json:"standby,omitempty"`
}

// TaskStatus is one task on one node.
type TaskStatus struct {
	ID     task.ID `json:"id"`
	Length int64   `json:"length"` // bytes; −1 while not known
	Pieces int     `json:"pieces"`
	Have   int     `json:"have"` // pieces
	// Received counts this download's bytes by source.
	Received Sources   `json:"received"`
	LastRead time.Time `json:"lastRead,omitzero"`
}

// HostStatus is one host as its owner sees it.
type HostStatus struct {
	host.Host
	Tasks int       `json:"tasks"`
	Seen  time.Time `json:"seen"`
}
