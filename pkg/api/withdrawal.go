package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// Paths of withdrawals.
const (
	// PathWithdrawals is where members tell an owner what was withdrawn (POST, a Withdrawals)
	// and learn it from one (GET). With ?mark= and the mark that the asker knows already, the
	// answer is 204 where there is nothing else.
	PathWithdrawals = "/api/v1/withdrawals"
	// PathContent + "/" + task ID, by DELETE, is for operators: it withdraws a content from
	// the whole cluster. The answer is a Withdrawn.
	PathContent = "/api/v1/content"
)

// Bounds on withdrawals.
const (
	// WithdrawalLife is how long a withdrawal is remembered: a host that was away for longer
	// keeps what it held.
	WithdrawalLife = 7 * 24 * time.Hour
	// WithdrawalsMax is how many are remembered; WithdrawalsSize bounds their JSON, in bytes.
	WithdrawalsMax  = 4096
	WithdrawalsSize = 2 << 20
)

// Withdrawal says that what hosts held of a content at a time is to be dropped. It forbids
// nothing: who wants the content afterwards gets it from its origin, if that gives it.
type Withdrawal struct {
	Task task.ID   `json:"task"`
	At   time.Time `json:"at"`
}

// Withdrawals are all that a host remembers.
type Withdrawals struct {
	Version int          `json:"version"`
	List    []Withdrawal `json:"list,omitempty"`
}

// Withdrawn is what became of an operator's order.
type Withdrawn struct {
	Task task.ID `json:"task"`
	// Told are the supernodes that heard of it, Failed those that did not, and why: they
	// learn it from the others when they are back.
	Told   []string          `json:"told,omitempty"`
	Failed map[string]string `json:"failed,omitempty"`
}

// DecodeWithdrawals reads withdrawals of at most WithdrawalsSize bytes.
func DecodeWithdrawals(b []byte) (Withdrawals, error) {
	if len(b) > WithdrawalsSize {
		return Withdrawals{}, fmt.Errorf("withdrawals of more than %d bytes", WithdrawalsSize)
	}
	var wire struct {
		Withdrawals
		List json.RawMessage `json:"list"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return Withdrawals{}, fmt.Errorf("reading withdrawals: %w", err)
	}
	out := wire.Withdrawals
	if out.Version < 1 || out.Version > Version+1 {
		return Withdrawals{}, fmt.Errorf("withdrawals of version %d, this host speaks %d", out.Version, Version)
	}
	if wire.List != nil {
		var err error
		if out.List, err = UnmarshalList[Withdrawal](wire.List, WithdrawalsMax, 1024); err != nil {
			return Withdrawals{}, fmt.Errorf("reading withdrawals: %w", err)
		}
	}
	for _, w := range out.List {
		if _, err := task.ParseID(string(w.Task)); err != nil {
			return Withdrawals{}, fmt.Errorf("reading withdrawals: %w", err)
		}
	}
	return out, nil
}
