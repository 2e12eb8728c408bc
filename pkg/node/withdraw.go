package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// tellTimeout bounds telling one supernode of a withdrawal.
	tellTimeout = 3 * time.Second
	// compareEvery is how often a supernode compares what it remembers with another: so one
	// that was away learns what was withdrawn meanwhile.
	compareEvery = 2 * time.Second
)

// OnWithdrawal has f called for each content that is withdrawn, once the engine has dropped
// it. It must be called before anything is served.
func (n *Node) OnWithdrawal(f func(task.ID)) { n.Withdrawals.drop = append(n.Withdrawals.drop, f) }

// dropWithdrawn takes a content out of the engine and the store.
func (n *Node) dropWithdrawn(id task.ID) {
	if err := n.Engine.Withdraw(id); err != nil {
		n.Log.Error("what was withdrawn cannot be dropped", "task", id, "error", err)
	}
}

// Withdraw drops a content here and tells supernodes, which tell all others. The error is of
// this host's disk.
func (n *Node) Withdraw(ctx context.Context, id task.ID, supernodes []string) (api.Withdrawn, error) {
	list := []api.Withdrawal{{Task: id, At: time.Now().UTC()}}
	err := n.Withdrawals.Add(list)
	out := api.Withdrawn{Task: id}
	var mu sync.Mutex // held to note one answer
	var wg sync.WaitGroup
	for _, addr := range supernodes {
		wg.Go(func() {
			err := n.tellWithdrawn(ctx, addr, list)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				out.Told = append(out.Told, addr)
				return
			}
			if out.Failed == nil {
				out.Failed = map[string]string{}
			}
			out.Failed[addr] = err.Error()
		})
	}
	wg.Wait()
	slices.Sort(out.Told)
	return out, err
}

// scheme is how members speak to each other.
func (n *Node) scheme() string {
	if n.Identity.Secure() {
		return "https"
	}
	return "http"
}

func (n *Node) tellWithdrawn(ctx context.Context, addr string, list []api.Withdrawal) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	body, err := json.Marshal(api.Withdrawals{Version: api.Version, List: list})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, n.scheme()+"://"+addr+api.PathWithdrawals, bytes.NewReader(body))
	if err != nil {
		return err
	}
	tr := n.Transport()
	defer tr.CloseIdleConnections()
	answer, err := tr.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusNoContent {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 200)) // for people
		return fmt.Errorf("it answers %s: %s", answer.Status, bytes.TrimSpace(text))
	}
	return nil
}

// CompareWithdrawals returns the part that asks other owners, one after the other, what they
// remember as withdrawn.
func (n *Node) CompareWithdrawals(others func() []string) Part {
	return func(ctx context.Context) error {
		client := &http.Client{Transport: n.Transport()}
		defer client.CloseIdleConnections()
		tick := time.NewTicker(compareEvery)
		defer tick.Stop()
		for {
			if list := others(); len(list) > 0 {
				addr := list[rand.IntN(len(list))]
				known, err := announce.AskWithdrawn(ctx, client, n.scheme(), addr, n.Withdrawals.Mark())
				if err == nil {
					err = n.Withdrawals.Add(known)
				}
				if err != nil && ctx.Err() == nil {
					n.Log.Debug("withdrawals not compared", "owner", addr, "error", err)
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

// handleWithdrawals serves [api.PathWithdrawals].
func (n *Node) handleWithdrawals(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.WithdrawalsSize+1))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		told, err := api.DecodeWithdrawals(b)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := n.Withdrawals.Add(told.List); err != nil {
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if mark := n.Withdrawals.Mark(); mark == r.URL.Query().Get("mark") {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(api.Withdrawals{Version: api.Version, List: n.Withdrawals.List()}); err != nil {
		n.Log.Debug("withdrawals were not sent", "error", err)
	}
}

// handleWithdraw serves the DELETE of [api.PathContent], for operators.
func (n *Node) handleWithdraw(w http.ResponseWriter, r *http.Request, name string, supernodes []string) {
	id, err := task.ParseID(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	done, err := n.Withdraw(r.Context(), id, supernodes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(done); err != nil {
		n.Log.Debug("the answer to a withdrawal was not sent", "error", err)
	}
}

// WithdrawCommand is the command that withdraws contents from a cluster, by the program that
// runs at an address of this machine.
func WithdrawCommand(program string, at *config.Address, flag string) Command {
	return Command{
		Use: "withdraw DIGEST...", Short: "Drop contents from every cache of the cluster",
		Long: `Withdraw has every host of the cluster drop what it holds of the contents with these digests, of
layers or of manifests; pulls of them end short. A host that is away drops them when it comes back
within seven days. It forbids nothing: who pulls a content again gets it from its registry, so
delete it there first.`,
		Args: cobra.MinimumNArgs(1), Keep: []string{flag},
		Run: func(ctx context.Context, args []string, stdout io.Writer) error {
			var problems []error
			for _, name := range args {
				// The digest of an image by name: what stands before the @ is for people.
				if i := strings.LastIndexByte(name, '@'); i >= 0 {
					name = name[i+1:]
				}
				id, err := task.ParseID(name)
				if err != nil {
					return Usage(err)
				}
				done, err := orderWithdrawal(ctx, program, *at, id)
				if err != nil {
					return err
				}
				fmt.Fprintf(stdout, "withdrew %s: here, and %d supernodes know\n", id, len(done.Told))
				for addr, why := range done.Failed {
					fmt.Fprintf(stdout, "supernode %s does not know yet: %s\n", addr, why)
				}
				if len(done.Failed) > 0 && len(done.Told) == 0 && program == "dfdaemon" {
					problems = append(problems, fmt.Errorf("%s is withdrawn on this host alone: no supernode heard of it; say it again when one answers", id))
				}
			}
			return errors.Join(problems...)
		},
	}
}

func orderWithdrawal(ctx context.Context, program string, at config.Address, id task.ID) (out api.Withdrawn, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+string(at)+api.PathContent+"/"+string(id), nil)
	if err != nil {
		return out, fmt.Errorf("asking %s: %w", program, err)
	}
	tr := &http.Transport{Proxy: nil, DisableKeepAlives: true}
	answer, err := tr.RoundTrip(request)
	if err != nil {
		return out, fmt.Errorf("no %s answers at %s (%w); is it running, and is this its address?", program, at, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", answer.Status, bytes.TrimSpace(text))
	}
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		return out, fmt.Errorf("asking %s at %s: %w", program, at, err)
	}
	return out, nil
}
