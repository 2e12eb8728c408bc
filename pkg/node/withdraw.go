package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// tellTimeout bounds telling one supernode of a withdrawal.
	tellTimeout = 3 * time.Second
	// compareEvery is how often a supernode compares what it remembers with another: so one
	// that was away learns what was withdrawn meanwhile.
	compareEvery = 2 * time.Second
	// followedMax bounds waiting for hosts to say what they dropped: an idle one announces
	// every five seconds. followedEvery is between two looks.
	followedMax   = 15 * time.Second
	followedEvery = 200 * time.Millisecond
)

// OnWithdrawal has f called for each content that is withdrawn, once the engine has dropped
// it. It must be called before anything is served.
func (n *Node) OnWithdrawal(f func(task.ID)) { n.Withdrawals.drop = append(n.Withdrawals.drop, f) }

// dropWithdrawn takes a content out of the engine and off the disk. After a try that failed,
// rest deletes what that left, and nothing that came since.
func (n *Node) dropWithdrawn(id task.ID, rest bool) error {
	if !rest {
		if err := n.Engine.Withdraw(id); err != nil {
			return err
		}
	}
	return n.Store.Sweep(id)
}

// TakeWithdrawals takes in what an owner remembers. A content that could not be dropped yet is
// no error here: the node tries again by itself, and owners are told of it.
func (n *Node) TakeWithdrawals(list []api.Withdrawal) error {
	if err := n.Withdrawals.Add(list); !errors.Is(err, ErrNotDropped) {
		return err
	}
	return nil
}

// Withdraw drops a content here and tells supernodes, which tell all others. It waits at most
// for wait until the hosts of the cluster have said that they dropped it, too. The error is of
// this host's memory of the order; a content that could not be dropped is told in the answer.
func (n *Node) Withdraw(ctx context.Context, id task.ID, supernodes []string, wait time.Duration) (api.Withdrawn, error) {
	list := []api.Withdrawal{n.Withdrawals.Order(id)}
	out := api.Withdrawn{Task: id}
	err := n.Withdrawals.Add(list)
	if errors.Is(err, ErrNotDropped) {
		out.Pending, err = err.Error(), nil
	}
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
	if wait > 0 {
		out.Followed = n.awaitFollowed(ctx, id, out.Told, wait)
	}
	return out, err
}

// awaitFollowed asks until no host is left that may still say that it dropped a content, for
// at most wait. The answer is the last one; nil where nobody knows.
func (n *Node) awaitFollowed(ctx context.Context, id task.ID, supernodes []string, wait time.Duration) (last *api.Followed) {
	ctx, cancel := context.WithTimeout(ctx, min(wait, followedMax))
	defer cancel()
	tick := time.NewTicker(followedEvery)
	defer tick.Stop()
	for {
		f, err := n.askFollowed(ctx, id, supernodes)
		if err == nil {
			last = &f
		}
		if err == nil && heardOfAll(f, n.cfg.Program != "supernode" && len(supernodes) > 0) {
			return last
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

// heardOfAll reports whether no host is left that may still say that it dropped a content. Where the
// one that asks announces to the owner, too, an owner that names nobody has just started.
func heardOfAll(f api.Followed, announces bool) bool {
	if announces && f.Dropped+len(f.Others)+f.Missing == 0 {
		return false
	}
	return f.Missing == 0 && !slices.ContainsFunc(f.Others, func(h api.HostFollowed) bool { return h.State == api.FollowUnheard })
}

// askFollowed asks whoever leads: this host, or the first supernode that answers.
func (n *Node) askFollowed(ctx context.Context, id task.ID, supernodes []string) (f api.Followed, err error) {
	if n.cfg.Program == "supernode" || len(supernodes) == 0 {
		return n.Followed(id), nil
	}
	tr := n.Transport()
	defer tr.CloseIdleConnections()
	for _, addr := range supernodes {
		if f, err = askFollowedAt(ctx, tr, n.scheme()+"://"+addr+api.PathFollowed+"/"+string(id)); err == nil {
			return f, nil
		}
	}
	return f, err
}

func askFollowedAt(ctx context.Context, tr http.RoundTripper, url string) (f api.Followed, err error) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return f, err
	}
	answer, err := tr.RoundTrip(request)
	if err != nil {
		return f, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return f, fmt.Errorf("it answers %s", answer.Status)
	}
	err = json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&f)
	return f, err
}

// Followed is what the hosts that announce here have said of a withdrawn content.
func (n *Node) Followed(id task.ID) api.Followed {
	if n.followed == nil {
		return api.Followed{Version: api.Version}
	}
	return n.followed(id)
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
		client := &http.Client{Transport: comparing{n.Transport(), n}}
		defer client.CloseIdleConnections()
		clocks := rate.Sometimes{Interval: time.Minute}
		tick := time.NewTicker(compareEvery)
		defer tick.Stop()
		for {
			if list := others(); len(list) > 0 {
				addr := list[rand.IntN(len(list))]
				known, err := announce.AskWithdrawn(ctx, client, n.scheme(), addr, n.Withdrawals.Mark())
				if err == nil {
					err = n.TakeWithdrawals(known)
				}
				if err != nil && ctx.Err() == nil {
					n.Log.Debug("withdrawals not compared", "owner", addr, "error", err)
					if identity.OfClocks(err) {
						clocks.Do(func() {
							n.Log.Warn("another supernode's clock is too far from this one's", "owner", addr, "error", err)
						})
					}
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
		// Whoever tells must not count a content as dropped here that is not.
		if err := n.Withdrawals.Add(told.List); err != nil {
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set(api.HeaderClock, n.Clock().UTC().Format(time.RFC3339Nano))
	if mark := n.Withdrawals.Mark(); mark == r.URL.Query().Get("mark") {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(api.Withdrawals{Version: api.Version, List: n.Withdrawals.List()}); err != nil {
		n.Log.Debug("withdrawals were not sent", "error", err)
	}
}

// handleFollowed serves [api.PathFollowed].
func (n *Node) handleFollowed(w http.ResponseWriter, name string) {
	id, err := task.ParseID(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(n.Followed(id)); err != nil {
		n.Log.Debug("which hosts dropped a content was not sent", "error", err)
	}
}

// handleWithdraw serves the DELETE of [api.PathContent], for operators.
func (n *Node) handleWithdraw(w http.ResponseWriter, r *http.Request, name string, supernodes []string) {
	id, err := task.ParseID(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var wait time.Duration
	if text := r.URL.Query().Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			http.Error(w, fmt.Sprintf("wait=%.40q is no duration, as 10s is", text), http.StatusBadRequest)
			return
		}
	}
	done, err := n.Withdraw(r.Context(), id, supernodes, wait)
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
layers or of manifests; pulls of them end short. It waits some seconds for the hosts to say that they
dropped them, and names those that did not. A host that is away drops them when it comes back
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
				tellWithdrawal(stdout, id, done)
				if len(done.Failed) > 0 && len(done.Told) == 0 && program == "dfdaemon" {
					problems = append(problems, fmt.Errorf("%s is withdrawn on this host alone: no supernode heard of it; say it again when one answers", id))
				}
				if n := undropped(done); n > 0 {
					problems = append(problems, fmt.Errorf("%s is not dropped on %s; mend what is told above: each host tries again by itself", id, plural(n, "host", "hosts")))
				}
			}
			return errors.Join(problems...)
		},
	}
}

// tellWithdrawal tells a person what became of an order.
func tellWithdrawal(w io.Writer, id task.ID, done api.Withdrawn) {
	here := "here"
	if done.Pending != "" {
		here = "NOT YET here"
	}
	fmt.Fprintf(w, "withdrew %s: %s, and %d supernodes know\n", id, here, len(done.Told))
	if done.Pending != "" {
		fmt.Fprintf(w, "this host: %s\n", done.Pending)
	}
	for _, addr := range slices.Sorted(maps.Keys(done.Failed)) {
		fmt.Fprintf(w, "supernode %s does not know yet, or could not drop it: %s\n", addr, done.Failed[addr])
	}
	f := done.Followed
	if f == nil {
		return
	}
	fmt.Fprintf(w, "of the hosts that announce, %d dropped it or had nothing of it, %d not yet\n", f.Dropped, len(f.Others)+f.Missing)
	for _, h := range f.Others {
		switch h.State {
		case api.FollowUnheard:
			fmt.Fprintf(w, "host %s has not said so yet: it hears of it with its next announce\n", h.Host)
		default:
			fmt.Fprintf(w, "host %s could not drop it: %s\n", h.Host, h.Why)
		}
	}
}

// undropped counts the hosts that know an order and could not follow it.
func undropped(done api.Withdrawn) (n int) {
	if done.Pending != "" {
		n++
	}
	if done.Followed != nil {
		for _, h := range done.Followed.Others {
			if h.State == api.FollowFailed {
				n++
			}
		}
	}
	return n
}

// cliWait is how long the command waits for the hosts' word.
const cliWait = 10 * time.Second

func orderWithdrawal(ctx context.Context, program string, at config.Address, id task.ID) (out api.Withdrawn, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+string(at)+api.PathContent+"/"+string(id)+"?wait="+cliWait.String(), nil)
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
