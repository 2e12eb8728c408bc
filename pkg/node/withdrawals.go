package node

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

// withdrawalsFile is where a node remembers withdrawals, in its data directory.
const withdrawalsFile = "withdrawn.json"

// Withdrawals are what was withdrawn, remembered for [api.WithdrawalLife] and over restarts:
// a content that this node held when it was withdrawn is dropped once, and what was brought
// again since is not. Safe for concurrent use.
type Withdrawals struct {
	path string
	now  func() time.Time
	log  *slog.Logger

	// drop is what is done about a content; it is set before anything is added.
	drop []func(task.ID)

	// turn is held while withdrawals are taken in, dropping included, so that who returns
	// from add knows that all is dropped.
	turn sync.Mutex
	// mu is held to look at the list and to change it, never while a disk is written.
	mu   sync.Mutex
	list map[task.ID]time.Time
	// mark is that of the list at markAt; empty when it is to be worked out again.
	mark   string
	markAt time.Time
}

// markLife is how long a mark stands while nothing is added; what is forgotten meanwhile
// changes it.
const markLife = time.Minute

// openWithdrawals reads what the node remembers. A file that cannot be read is an error:
// what it said may have to be dropped still by others.
func openWithdrawals(dir string, log *slog.Logger) (*Withdrawals, error) {
	w := &Withdrawals{path: filepath.Join(dir, withdrawalsFile), now: time.Now, log: log, list: map[task.ID]time.Time{}}
	b, err := os.ReadFile(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was withdrawn: %w", err)
	}
	known, err := api.DecodeWithdrawals(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w; delete the file to forget what was withdrawn", w.path, err)
	}
	for _, x := range known.List {
		w.list[x.Task] = x.At
	}
	return w, nil
}

// Add takes withdrawals in and drops what is new of them. One that is known, older than
// [api.WithdrawalLife] or from the future is passed over. The error is of the disk: what was
// withdrawn is dropped all the same, but forgotten at the next start.
func (w *Withdrawals) Add(list []api.Withdrawal) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	now := w.now()
	var fresh []task.ID
	w.mu.Lock()
	for _, x := range list {
		if x.At.After(now.Add(identity.ClockSkew)) || now.Sub(x.At) >= api.WithdrawalLife || !x.At.After(w.list[x.Task]) {
			continue
		}
		w.list[x.Task], w.mark = x.At, ""
		fresh = append(fresh, x.Task)
	}
	w.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	err := w.save()
	for _, id := range fresh {
		w.log.Info("content withdrawn", "task", id)
		for _, f := range w.drop {
			f(id)
		}
	}
	return err
}

// List is what is remembered, oldest first.
func (w *Withdrawals) List() []api.Withdrawal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current(w.now())
}

// current lists what is remembered, and forgets the rest. mu is held.
func (w *Withdrawals) current(now time.Time) (out []api.Withdrawal) {
	for id, at := range w.list {
		if now.Sub(at) >= api.WithdrawalLife {
			delete(w.list, id)
			continue
		}
		out = append(out, api.Withdrawal{Task: id, At: at.UTC()})
	}
	slices.SortFunc(out, func(a, b api.Withdrawal) int { return a.At.Compare(b.At) })
	if more := len(out) - api.WithdrawalsMax; more > 0 {
		for _, x := range out[:more] {
			delete(w.list, x.Task)
		}
		out = out[more:]
	}
	return out
}

// Mark tells two lists apart; it is empty when nothing is remembered.
func (w *Withdrawals) Mark() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if len(w.list) == 0 || w.mark != "" && now.Sub(w.markAt) < markLife {
		return w.mark // nearly always, and asked with every announce
	}
	w.mark, w.markAt = "", now
	list := w.current(now)
	if len(list) == 0 {
		return ""
	}
	h := sha256.New()
	for _, x := range list {
		h.Write([]byte(x.Task))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(x.At.UnixNano())))
	}
	w.mark = hex.EncodeToString(h.Sum(nil)[:8])
	return w.mark
}

// save writes the list as a whole or not at all.
func (w *Withdrawals) save() error {
	b, err := json.Marshal(api.Withdrawals{Version: api.Version, List: w.List()})
	if err != nil {
		return fmt.Errorf("remembering what was withdrawn: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(w.path), withdrawalsFile+"-*")
	if err != nil {
		return fmt.Errorf("remembering what was withdrawn: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), w.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remembering what was withdrawn: %w", err), os.Remove(f.Name()))
	}
	return nil
}
