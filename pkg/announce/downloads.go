package announce

import (
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// downloads are the tasks that this host downloads, with the owner that knows of each. A new owner needs the spec,
// which only the first announce of a download has.
type downloads map[task.ID]*download

// download is one of them.
type download struct {
	// spec goes to every owner that takes the task over. It holds credentials.
	spec *api.Spec
	// owner has received the start and the spec: an address, [local] or [nobody].
	owner string
	last  time.Time
}

// The values of download.owner that are no address.
const (
	nobody = ""
	local  = "local" // the host's own coordinator
)

// prepare completes an entry for an owner that may not know of the task yet: an owner that takes a
// task over must receive the start and the spec.
func (all downloads) prepare(now time.Time, e api.Entry, to string) api.Entry {
	switch e.Event {
	case api.Started, api.Starving, api.Progress:
	default:
		return e
	}
	d := all[e.Task]
	if e.Spec != nil {
		if d == nil {
			d = &download{}
			all[e.Task] = d
		}
		d.spec, d.last = e.Spec, now
	}
	if d == nil {
		return e
	}
	if e.Event == api.Starving || d.owner != to {
		e.Spec = d.spec
	}
	if e.Event == api.Progress && d.owner != to {
		e.Event = api.Started
	}
	return e
}

// delivered notes that an owner has an entry, as it was sent, and returns the owner that knew of the
// task before, or nobody.
func (all downloads) delivered(now time.Time, e api.Entry, to string) (former string) {
	former = nobody
	if d := all[e.Task]; d != nil {
		former, d.last = d.owner, now
		if e.Spec != nil {
			// Without the spec, an owner that restarted meanwhile knows only half of the download.
			d.owner = to
		}
	}
	if e.Event == api.Completed || e.Event == api.Stopped {
		delete(all, e.Task)
	}
	if former == to {
		return nobody
	}
	return former
}

// disown makes the next announce of each download of an owner repeat its start and spec.
func (all downloads) disown(owner string) {
	for _, d := range all {
		if d.owner == owner {
			d.owner = nobody
		}
	}
}

// forget drops the specs of downloads that are no longer announced.
func (all downloads) forget(now time.Time) {
	for id, d := range all {
		if now.Sub(d.last) >= forgetAfter {
			delete(all, id)
		}
	}
}
