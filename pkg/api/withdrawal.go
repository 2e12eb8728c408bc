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
	// PathFollowed + "/" + task ID is where members ask an owner which of its hosts have dropped
	// a withdrawn content (GET). The answer is a Followed.
	PathFollowed = "/api/v1/withdrawals/followed"
)

// Bounds on withdrawals.
const (
	// WithdrawalLife is how long hosts tell each other of a withdrawal: a host that was away
	// for longer keeps what it held.
	WithdrawalLife = 7 * 24 * time.Hour
	// WithdrawalsMax is how many are remembered; WithdrawalsSize bounds their JSON, in bytes.
	WithdrawalsMax  = 4096
	WithdrawalsSize = 2 << 20
	// UnfollowedMax is how many withdrawals that a host could not follow it tells in one
	// announce, and UnfollowedWhy bounds the reason of each, in bytes.
	UnfollowedMax = 16
	UnfollowedWhy = 1000
)

// Withdrawal orders each host to drop a task that it held when it learned of the order. It
// forbids nothing: a later pull gets the task from its origin, if that gives it.
type Withdrawal struct {
	Task task.ID `json:"task"`
	// At names the order, together with Task. It is the time by the clock of the host that gave
	// the order, moved on where an order of that name is known already. Hosts of version 1 up to
	// this field's neighbour AgeMillis compare it with their own clocks; others compare it for
	// equality alone.
	At time.Time `json:"at"`
	// AgeMillis is how long ago the order was given, summed up along its way by the hosts that
	// passed it on, so that nobody's clock matters; 1 or more. 0: a former version told it, and
	// At is all there is to judge its age by.
	AgeMillis int64 `json:"ageMillis,omitempty"`
	// Pending is in a host's own file alone: the order was learned and is not followed yet.
	Pending bool `json:"pending,omitempty"`
}

// Withdrawals are all that a host remembers.
type Withdrawals struct {
	Version int          `json:"version"`
	List    []Withdrawal `json:"list,omitempty"`
	// Saved is in a host's own file alone: its clock when it wrote the ages.
	Saved time.Time `json:"saved,omitzero"`
}

// Unfollowed is a withdrawal that a host knows and could not follow so far.
type Unfollowed struct {
	Task task.ID `json:"task"`
	// Why says for people what failed; the host tries again by itself.
	Why string `json:"why"`
}

// FollowState is how far a host is with the withdrawals of an owner.
type FollowState string

// The states of a host.
const (
	// FollowDropped: it has dropped what it held, or held nothing.
	FollowDropped FollowState = "dropped"
	// FollowFailed: it knows of the order and could not drop the content yet.
	FollowFailed FollowState = "failed"
	// FollowUnheard: it has not said yet that it knows.
	FollowUnheard FollowState = "unheard"
)

// HostFollowed is one host's state.
type HostFollowed struct {
	Host  string      `json:"host"` // its name, or its ID where it has none
	State FollowState `json:"state"`
	Why   string      `json:"why,omitempty"`
}

// Followed is what an owner knows of the hosts that announce to it, about one task.
type Followed struct {
	Version int `json:"version"`
	// Dropped counts the hosts in that state; Others are the rest, at most OthersMax of them.
	Dropped int            `json:"dropped"`
	Others  []HostFollowed `json:"others,omitempty"`
	// Missing is how many more there are than Others tells.
	Missing int `json:"missing,omitempty"`
}

// OthersMax is how many hosts a Followed names.
const OthersMax = 64

// Withdrawn is what became of an operator's order.
type Withdrawn struct {
	Task task.ID `json:"task"`
	// Told are the supernodes that heard of it, Failed those that did not, and why: they
	// learn it from the others when they are back.
	Told   []string          `json:"told,omitempty"`
	Failed map[string]string `json:"failed,omitempty"`
	// Pending says why this host has not dropped the content yet; it tries again by itself.
	// Empty: it has.
	Pending string `json:"pending,omitempty"`
	// Followed is what the hosts of the cluster have said within the moment that the order
	// waited for them; nil where no owner could be asked.
	Followed *Followed `json:"followed,omitempty"`
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
