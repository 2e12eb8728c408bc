package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// ageMax bounds the age that a lookup or a reply may state.
const ageMax = time.Hour

// askOwner sends a lookup to its owner in the cluster. ok is false when this host has to ask the
// registry: because the reply would be for this host alone, or the owner did not reply.
func (r *Resolver) askOwner(ctx context.Context, l Lookup, age time.Duration) (out reply, ok bool, err error) {
	if r.cfg.AskOwner == nil || l.Authorization.IsZero() && r.usesOwnCredentials(l.Upstream) {
		return reply{}, false, nil
	}
	generation := r.generation.Load()
	a, err := r.cfg.AskOwner(ctx, api.Lookup{
		Version: api.Version, Upstream: l.Upstream, Repository: l.Repository, Kind: l.Kind, Reference: l.Reference,
		Accept: l.Accept, Authorization: l.Authorization.Reveal(), Anonymous: l.Anonymous, MaxAgeMillis: age.Milliseconds(),
		Doubts: true, Agent: l.Agent,
	})
	if err != nil || a.Unreached != "" || a.LastKnown {
		return reply{}, false, nil
	}
	r.pulse.beat(l.Upstream, time.Now())
	if a.Refusal != nil {
		return reply{}, true, &RefusedError{
			Upstream: l.Upstream, Path: l.Path(), Status: a.Refusal.Status, Header: a.Refusal.Header, Body: a.Refusal.Body,
		}
	}
	id, err := oci.ParseDigest(string(a.Digest))
	if err != nil || l.ID != "" && (id != l.ID || !a.Yours) {
		return reply{}, false, nil
	}
	out.at = time.Now().Add(-time.Duration(min(a.AgeMillis, ageMax.Milliseconds())) * time.Millisecond)
	out.Grant = Grant{ID: id, Length: a.Length, MediaType: a.MediaType, Doubted: a.Doubted}
	if a.Yours {
		if a.DateSeconds > 0 {
			out.date = time.Unix(a.DateSeconds, 0)
		}
		out.Grant = r.remember(l, out.Grant, out.at, generation)
	}
	r.note(r.others, l, out.Grant, out.at, a.Yours)
	return out, true, nil
}

// Owner answers the lookups of hosts, so that a cluster asks a registry once for what is the same for all hosts: the
// meaning of a tag, and what anonymous clients may read. It sends the credentials that a lookup brings, never its own.
// It is an [http.Handler] for [api.PathLookups]; safe for concurrent use.
type Owner struct {
	resolver *Resolver
	// mu is held to begin or end a request, never while one runs.
	mu sync.Mutex
	// running counts the requests that run, by the address of the host that sent them; most bounds each count.
	running map[string]int
	most    int
}

// lookupsMax bounds the lookups of one address that run at once: each holds a goroutine, and may hold a request to a
// registry. Many hosts can share an address.
const lookupsMax = 4096

// enter counts a request of an address, until leave. It returns false where too many run.
func (o *Owner) enter(addr string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running[addr] >= o.most {
		return false
	}
	o.running[addr]++
	return true
}

func (o *Owner) leave(addr string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running[addr]--; o.running[addr] == 0 {
		delete(o.running, addr)
	}
}

// NewOwner returns an Owner that asks registries through r.
func NewOwner(r Registry) *Owner {
	cfg := Config{Registry: r, Policy: Policy{GrantLife: opaqueLife}}
	if patient, ok := r.(interface {
		FirstByte(upstream string) time.Duration
	}); ok {
		cfg.FirstByte = patient.FirstByte
	}
	o := &Owner{resolver: New(cfg), running: make(map[string]int), most: lookupsMax}
	o.resolver.bare = true
	return o
}

// Remember makes the Owner keep what registries say in m, and reply to hosts from it while a registry does not answer.
// Call it before the first lookup.
func (o *Owner) Remember(m *Memory) { o.resolver.cfg.Memory = m }

// Run keeps the Owner open until ctx ends, then closes it. It returns nil.
func (o *Owner) Run(ctx context.Context) error { return o.resolver.Run(ctx) }

// Close cancels the lookups under way and waits for all goroutines.
func (o *Owner) Close() { o.resolver.Close() }

// Forget drops all grants and tags; see [Resolver.Forget].
func (o *Owner) Forget() { o.resolver.Forget() }

// Purge forgets a digest, all grants and all tags.
func (o *Owner) Purge(id task.ID) { o.resolver.Purge(id) }

// Reply answers a lookup. It waits for the registry until ctx ends.
func (o *Owner) Reply(ctx context.Context, asked api.Lookup) api.LookupReply {
	out := o.reply(ctx, asked)
	if out.Doubted && !asked.Doubts {
		return api.LookupReply{Version: api.Version, Unreached: "the registry has to show the blob first; ask it"}
	}
	return out
}

func (o *Owner) reply(ctx context.Context, asked api.Lookup) api.LookupReply {
	l, err := parseLookup(asked)
	if err != nil {
		return api.LookupReply{Version: api.Version, Unreached: err.Error()}
	}
	if asked.LastKnown {
		return o.resolver.remembers(l)
	}
	if l.ID == "" {
		age := time.Duration(min(asked.MaxAgeMillis, ageMax.Milliseconds())) * time.Millisecond
		tag, err := o.resolver.askTag(ctx, l, age)
		return wireReply(l, tag.reply, err)
	}
	if g, valid, _ := o.resolver.grants.get(l.subject(), object{l.Kind, l.ID}, time.Now()); valid {
		return wireReply(l, reply{Grant: g, at: g.until.Add(-opaqueLife)}, nil)
	}
	g, err := o.resolver.askDigest(ctx, l)
	return wireReply(l, reply{Grant: g, at: time.Now()}, err)
}

// parseLookup checks the names of a lookup.
func parseLookup(asked api.Lookup) (l Lookup, err error) {
	l = Lookup{
		Kind: asked.Kind, Reference: asked.Reference, Accept: asked.Accept,
		Authorization: secret.String(asked.Authorization), Anonymous: asked.Anonymous && asked.Authorization == "",
		Agent: source.CleanAgent(asked.Agent),
	}
	if l.Upstream, err = oci.ParseHost(asked.Upstream); err != nil {
		return l, err
	}
	if l.Repository, err = oci.ParseRepository(l.Upstream, asked.Repository); err != nil {
		return l, err
	}
	if l.Kind == task.Manifest && oci.IsTag(l.Reference) {
		return l, nil
	}
	l.ID, err = oci.ParseDigest(l.Reference)
	return l, err
}

// wireReply is the wire form of a reply or of its error.
func wireReply(l Lookup, r reply, err error) api.LookupReply {
	out := api.LookupReply{Version: api.Version}
	var refused *RefusedError
	switch {
	case errors.As(err, &refused) && refused.untried:
		out.Unreached = "the registry's token service did not answer"
	case errors.As(err, &refused):
		out.Refusal = &api.RegistryError{Status: refused.Status, Header: refused.Header, Body: refused.Body}
	case err != nil:
		out.Unreached = fmt.Sprintf("%.1000s", err)
	default:
		out.Digest, out.Length, out.MediaType, out.Doubted = r.ID, r.Length, r.MediaType, r.Doubted
		out.Yours = r.subject == l.subject()
		out.AgeMillis = max(0, time.Since(r.at).Milliseconds())
		if !r.date.IsZero() {
			out.DateSeconds = max(0, r.date.Unix())
		}
	}
	return out
}

// ServeHTTP answers one lookup. The headers go out at once, so that the host can tell an owner that
// waits for a registry from a dead one. A host whose address has too many lookups here is told to ask the registry.
func (o *Owner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "send a lookup by POST", http.StatusMethodNotAllowed)
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.LookupMax))
	var l api.Lookup
	if err == nil {
		l, err = api.DecodeLookup(b)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	addr, _, _ := net.SplitHostPort(r.RemoteAddr)
	addr = host.Network(addr)
	if !o.enter(addr) {
		reason := fmt.Sprintf("%d lookups from %s run here already; ask the registry", o.most, addr)
		_ = json.NewEncoder(w).Encode(api.LookupReply{Version: api.Version, Unreached: reason})
		return
	}
	defer o.leave(addr)
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	_ = json.NewEncoder(w).Encode(o.Reply(r.Context(), l))
}
