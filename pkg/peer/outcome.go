package peer

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// How a download ends, and what other hosts learn of it.

// cause is why a download ended.
type cause int

const (
	// causeOther: it was stopped or dropped, no host could help, or a neighbour passed on a refusal.
	causeOther cause = iota
	// causeDisk: this host's own disk failed, which is no reason for others.
	causeDisk
	// causeOrigin: an origin refused the spec.
	causeOrigin
	// causeRetry: the origin's bytes were wrong, this host dropped everything, and it asks the origin once more.
	causeRetry
)

// outcome is how a download ended; err is nil as long as it has not.
type outcome struct {
	err   error
	cause cause
	spec  *task.Spec // with which the origin was asked, in causeOrigin
}

// set ends the download, unless it has ended before.
func (o *outcome) set(err error, why cause, spec *task.Spec) {
	if o.err == nil {
		*o = outcome{err, why, spec}
	}
}

// observed is the last state of a seed that the observer received.
type observed int

const (
	observedNothing observed = iota
	observedMetadata
	observedDone
)

// failure is why the download ended; it may be called once done is closed.
func (o *outcome) failure() error {
	if o.err == nil {
		return ErrStopped
	}
	return o.err
}

// errOthers replaces a refusal of other credentials.
var errOthers = &api.Failure{
	Status:  http.StatusServiceUnavailable,
	Message: "the object was requested with other credentials, which its origin refused; try again",
}

// failureFor is why the download ended, for a caller that came with a spec: an origin's refusal may be
// about credentials, and callers with other credentials must not get it.
func (o *outcome) failureFor(spec task.Spec) error {
	var f *api.Failure
	if errors.As(o.err, &f) && f.Personal() && (o.spec == nil || !o.spec.SameAsker(spec)) {
		return errOthers
	}
	return o.failure()
}

// report reports the progress of a seed to the observer.
func (d *Download) report() {
	o := d.e.cfg.Observer
	if o == nil || !d.seeds() || d.pick == nil {
		return
	}
	if d.observed == observedNothing {
		d.observed = observedMetadata
		o.SeedMetadata(d.id, d.proof.replica.Metadata())
	}
	if d.observed == observedMetadata && d.complete() {
		d.observed = observedDone
		o.SeedDone(d.id)
	}
}

// fail ends the download with an error that every reader gets.
func (d *Download) fail(err error) { d.end.set(err, causeOther, nil) }

// failFor ends the download because an origin refused spec.
func (o *outcome) failFor(spec task.Spec, f *api.Failure) {
	o.set(f, causeOrigin, &spec)
}

// tell logs at level on seeds and at debug elsewhere, where the mirror logs the pull.
func (d *Download) tell(level slog.Level, msg string, attrs ...any) {
	if !d.e.cfg.Seed {
		level = slog.LevelDebug
	}
	d.log.Log(d.ctx, level, msg, attrs...)
}

// failHere ends the download because of this host's own disk.
func (o *outcome) failHere(err error) {
	o.set(&api.Failure{Status: http.StatusInsufficientStorage, Message: err.Error(), Full: true}, causeDisk, nil)
}

// forOthers returns what other hosts get of a failure. This host's full disk is no failure of the origin, and does not
// keep others from the object.
func (d *Download) forOthers(f *api.Failure) *api.Failure {
	if d.end.cause != causeDisk {
		return f
	}
	return d.e.unableToKeep(f.Message)
}

// unableToKeep is what other hosts get where this host's disk is the cause.
func (e *Engine) unableToKeep(why string) *api.Failure {
	return &api.Failure{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf(
		"host %s (%s), the seed of this task, cannot keep it: %s", e.cfg.Host.Name, e.cfg.Host.ID.Short(), why), Full: true}
}

// tellFailure logs why a download failed, and reports it to observer and neighbours where it is a seed.
func (d *Download) tellFailure(now time.Time) {
	var f *api.Failure
	switch {
	case errors.As(d.end.err, &f):
		d.tell(slog.LevelWarn, "download failed",
			append([]any{"name", d.wants.spec.Name(), "error", d.end.err}, d.times.attrs(now)...)...)
	case errors.Is(d.end.err, ErrRevoked) && d.end.cause != causeRetry:
		f = &api.Failure{Status: http.StatusBadGateway, Message: d.end.err.Error()}
	default:
		return
	}
	if !d.seeds() {
		return
	}
	f = d.forOthers(f)
	// The observer first: neighbours that get the failure ask the owner whether it concerns them.
	if d.e.cfg.Observer != nil {
		d.e.cfg.Observer.SeedFailed(d.id, d.end.spec, f)
	}
	if !errors.Is(d.end.err, ErrRevoked) { // neighbours have received the revocation
		for _, c := range d.conns.open {
			c.send(wire.Message{Type: wire.FailMessage, Failure: f})
		}
	}
}

// revoke drops wrong bytes here and at every neighbour. The certificate of the key that signed the
// revocation goes first, because a neighbour may not know that key.
func (d *Download) revoke(now time.Time, list []piece.Revocation, cert []byte) {
	for _, r := range list {
		d.log.Warn("pieces revoked", "epoch", r.Epoch, "key", r.Key)
		d.e.noteRevoked(now, d.id, r, cert)
	}
	for _, c := range d.conns.open {
		sendRevocations(c, list, cert)
	}
	d.discard(now)
}

func sendRevocations(c *conn, list []piece.Revocation, cert []byte) {
	if cert != nil {
		certs := current(c.d.e.cfg.Verifier, [][]byte{cert})
		c.send(wire.Message{Type: wire.DigestMessage, Digests: &wire.Digests{Certificates: certs}})
	}
	for _, r := range list {
		c.send(wire.Message{Type: wire.RevokeMessage, Revocation: &r})
	}
}

// sendRevoked sends a neighbour the revocation of an epoch whose digests it sent.
func (d *Download) sendRevoked(c *conn, epoch uint64) {
	if r, cert, ok := d.e.revocation(d.id, epoch); ok {
		sendRevocations(c, []piece.Revocation{r}, cert)
	}
}

// discard drops what is stored and ends every reader short.
func (d *Download) discard(now time.Time) {
	d.e.noteReplaced(d.id)
	if err := d.e.cfg.Store.Remove(d.id); err != nil {
		d.log.Error("cannot drop a revoked task", "error", err)
	}
	d.fail(ErrRevoked)
}

// failDigests ends a download whose stored pieces contradict signed digests, or whose disk fails.
func (d *Download) failDigests(now time.Time, err error) {
	switch {
	case errors.Is(err, errContradiction):
		d.log.Warn("task dropped", "error", err)
		d.discard(now)
	case errors.Is(err, errSpace):
		d.end.failHere(err)
	}
}

// giveUp fails the download where the policy says so.
func (d *Download) giveUp(now time.Time, v policy.View) {
	if !d.policy.GiveUp(now, v) {
		return
	}
	cause := d.ownerErr
	if cause == nil {
		cause = errors.New("the owner knows no host that has it and answers")
		if d.conns.dialErr != nil {
			cause = fmt.Errorf("%w; the last try: %w", cause, d.conns.dialErr)
		}
	}
	d.fail(&api.Failure{Status: http.StatusServiceUnavailable,
		Message: fmt.Sprintf("no host to download task %s from: %v", d.id, cause)})
}
