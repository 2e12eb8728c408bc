package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// After a temporary failure, such as no free file descriptor, the engine tries again: first after acceptPauseMin, later
// after up to acceptPauseMax. It logs one line in acceptQuiet.
const acceptPauseMin, acceptPauseMax, acceptQuiet = 5 * time.Millisecond, time.Second, time.Minute

func (e *Engine) accept(ctx context.Context) error {
	var logged time.Time
	pause, failures := acceptPauseMin, 0
	for {
		raw, err := e.cfg.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				failures++
				if now := time.Now(); now.Sub(logged) >= acceptQuiet {
					e.log.Warn("cannot accept peers, trying again", "error", err, "failures", failures)
					logged, failures = now, 0
				}
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
				pause = min(2*pause, acceptPauseMax)
				continue
			}
			return fmt.Errorf("accepting peers on %s: %w", e.cfg.Listener.Addr(), err)
		}
		pause = acceptPauseMin
		e.wg.Go(func() {
			if err := e.welcome(ctx, raw); err != nil {
				raw.Close()
				e.log.Debug("peer turned away", "addr", raw.RemoteAddr(), "error", err)
				if errors.Is(err, errOtherHost) {
					e.pretends.Do(func() {
						e.log.Warn("a member poses as another host", "addr", raw.RemoteAddr(), "error", err)
					})
				}
			}
		})
	}
}

// welcome does the handshake with a peer and hands the connection to the download that it asks for.
func (e *Engine) welcome(ctx context.Context, raw net.Conn) (err error) {
	defer source.Rescue(&err, "welcoming a peer")
	conn, swarm, err := wire.Accept(ctx, raw, e.cfg.Host.ID.PeerID())
	if err != nil {
		return err
	}
	if err := e.checkHost(raw, conn); err != nil {
		return err
	}
	id, ok := e.findTask(swarm)
	if words := e.failed(time.Now(), id); !ok && words != nil {
		return e.sendFailure(conn, words)
	}
	if !ok {
		e.log.Debug("peer asks for a task that is not here", "addr", raw.RemoteAddr(), "swarm", fmt.Sprintf("%x", swarm))
		return e.dismiss(conn, wire.LeavesTask)
	}
	d, err := e.download(task.Spec{ID: id}, forPeer)
	if err != nil {
		return errors.Join(err, e.dismiss(conn, wire.LeavesTask))
	}
	defer e.release(d)
	if err = d.offerConn(conn, false, ""); err == nil || errors.Is(err, errSelf) || errors.Is(err, errBanned) {
		return err
	}
	return errors.Join(err, e.dismiss(conn, leavingFor(err)))
}

// leavingFor returns the reason that this host announces when it refuses a connection because of err.
func leavingFor(err error) wire.Leaving {
	if errors.Is(err, errTwice) {
		return wire.LeavesConn
	}
	return wire.LeavesTask
}

// dismiss closes a connection that no download took, and says why, so that the other side does not report this host as
// silent.
func (e *Engine) dismiss(conn *wire.Conn, why wire.Leaving) error {
	return e.closeAfter(conn, wire.Message{Type: wire.HelloMessage, Hello: &wire.Hello{
		Host: e.cfg.Host.ID, Version: wire.Version, Client: e.cfg.Client, Leaving: why,
	}})
}

// errOtherHost means that a peer's handshake names another host than its certificate.
var errOtherHost = errors.New("the handshake names another host than the certificate")

// checkHost refuses a peer whose handshake names another host than its certificate.
func (e *Engine) checkHost(raw net.Conn, conn *wire.Conn) error {
	if e.cfg.HostOf == nil {
		return nil
	}
	id, err := e.cfg.HostOf(raw)
	if err != nil {
		return err
	}
	if id.PeerID() != conn.PeerID() {
		return fmt.Errorf("%w: %w, which names %s", wire.ErrProtocol, errOtherHost, id)
	}
	return nil
}

// swarmTask is the task of a swarm, and the sweep before which it was last in use.
type swarmTask struct {
	id    task.ID
	sweep int
}

// swarmsMin is how many names are kept in any case.
const swarmsMin = 1024

// nameTask adds a task's name in handshakes. If there are too many names, it starts a sweep of those whose tasks are
// gone. The caller holds mu, or no other goroutine has the engine yet.
func (e *Engine) nameTask(id task.ID) {
	e.swarms[id.Swarm()] = swarmTask{id, e.sweep}
	if len(e.swarms) > e.swarmsMax {
		e.swarmsMax *= 2 // one sweep at a time
		e.sweep++
		sweep := e.sweep
		e.wg.Go(func() { e.sweepNames(sweep) })
	}
}

// sweepNames drops the names of tasks that are gone: those that are not stored, and that no call has used since this
// sweep began.
func (e *Engine) sweepNames(sweep int) {
	stored := make(map[task.ID]bool)
	for _, entry := range e.cfg.Store.Inventory() {
		stored[entry.ID] = true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for swarm, t := range e.swarms {
		_, gaveUp := e.failures[t.id]
		if t.sweep < sweep && !stored[t.id] && e.downloads[t.id] == nil && !gaveUp {
			delete(e.swarms, swarm)
		}
	}
	e.swarmsMax = swarmsMin + 2*len(e.swarms)
}

// findTask finds the task of a swarm, and reports whether it is in memory or in the store.
func (e *Engine) findTask(swarm [20]byte) (id task.ID, ok bool) {
	e.mu.Lock()
	t, ok := e.swarms[swarm]
	id = t.id
	running := e.downloads[id] != nil
	e.mu.Unlock()
	if !ok || running {
		return id, ok
	}
	r, err := e.cfg.Store.Open(id)
	if err != nil {
		return id, false
	}
	r.Close()
	return id, true
}

// failed returns why this host gave a task up a moment ago, or nil.
func (e *Engine) failed(now time.Time, id task.ID) *api.Failure {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.failures[id]; now.Before(f.until) {
		return f.words
	}
	return nil
}

// sendFailure sends a late peer the reason why this seed gave up.
func (e *Engine) sendFailure(conn *wire.Conn, words *api.Failure) error {
	hello := &wire.Hello{Host: e.cfg.Host.ID, Version: wire.Version, Client: e.cfg.Client, Seed: true}
	return e.closeAfter(conn, wire.Message{Type: wire.HelloMessage, Hello: hello},
		wire.Message{Type: wire.FailMessage, Failure: words})
}

// closeAfter closes a connection after a few last messages.
func (e *Engine) closeAfter(conn *wire.Conn, messages ...wire.Message) error {
	_ = conn.WriteWithin(drainTimeout)
	for _, m := range messages {
		if err := conn.Send(m); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	conn.HangUp(drainTimeout)
	for {
		if _, err := conn.Next(); err != nil {
			return conn.Close()
		}
	}
}
