package registryproxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

// askShared asks the cluster what is the same for every host. ok is false when the registry
// is to be asked from here: because the question is this host's own, or nobody answered.
func (d *desk) askShared(ctx context.Context, q question, age time.Duration) (s saying, at time.Time, ok bool) {
	if d.shared == nil || (q.authorization == "" && d.ownCredentials(q.upstream)) {
		return saying{}, time.Time{}, false
	}
	forgotten := d.forgotten.Load()
	a, err := d.shared(ctx, api.Lookup{
		Version: api.Version, Upstream: q.upstream, Repository: q.repository, Kind: target{endpoint: q.endpoint}.kind(), Reference: q.reference,
		Accept: q.accept, Authorization: q.authorization, Anonymous: q.anonymous, MaxAgeMillis: age.Milliseconds(),
	})
	if err != nil || a.Unreached != "" {
		return saying{}, time.Time{}, false
	}
	if a.Refusal != nil {
		return saying{status: a.Refusal.Status, header: a.Refusal.Header, body: a.Refusal.Body}, time.Time{}, true
	}
	id, err := oci.ParseDigest(string(a.Digest))
	if err != nil || (q.id != "" && (id != q.id || !a.Yours)) {
		return saying{}, time.Time{}, false
	}
	at = time.Now().Add(-time.Duration(min(a.AgeMillis, int64(time.Hour/time.Millisecond))) * time.Millisecond)
	s.right = right{verdict: verdict{id: id, length: a.Length, mediaType: a.MediaType}}
	if a.Yours {
		var date time.Time
		if a.DateSeconds > 0 {
			date = time.Unix(a.DateSeconds, 0)
		}
		s.right = d.grant(q, s.right, at, date, forgotten)
	}
	return s, at, true
}

// Desk answers on an owner what its hosts would else each ask a registry: what a tag means,
// and what anybody may have. It asks with the credentials that the question brings, never
// with its own. An [http.Handler] for [api.PathLookups]; safe for concurrent use.
type Desk struct{ desk *desk }

// NewDesk returns a Desk that asks upstream.
func NewDesk(upstream Upstream) *Desk {
	d := &Desk{&desk{upstream: upstream, bare: true}}
	d.desk.policy.Store(&Policy{RightsLife: opaqueLife})
	return d
}

// Forget drops all that registries have said.
func (d *Desk) Forget() { d.desk.forget() }

// Answer answers a question. It waits for the registry as long as ctx lets it.
func (d *Desk) Answer(ctx context.Context, asked api.Lookup) api.LookupReply {
	q, err := checked(asked)
	if err != nil {
		return api.LookupReply{Version: api.Version, Unreached: err.Error()}
	}
	if q.id == "" {
		r, err := d.desk.resolve(ctx, q, time.Duration(min(asked.MaxAgeMillis, int64(time.Hour/time.Millisecond)))*time.Millisecond)
		if err != nil {
			r.said.err = err
		}
		r.said.right = r.right
		return answer(r.said, q, r.at)
	}
	if r, counts, _ := d.desk.rights.get(q.holder(), object{q.endpoint, q.id}, time.Now()); counts {
		return answer(saying{right: r}, q, r.until.Add(-opaqueLife))
	}
	s, err := d.desk.ask(ctx, q)
	if err != nil {
		s.err = err
	}
	return answer(s, q, time.Now())
}

// checked is a question whose names are names.
func checked(asked api.Lookup) (q question, err error) {
	q = question{accept: asked.Accept, authorization: asked.Authorization, anonymous: asked.Anonymous && asked.Authorization == "", reference: asked.Reference}
	if q.upstream, err = oci.ParseHost(asked.Upstream); err != nil {
		return q, err
	}
	if q.repository, err = oci.ParseRepository(q.upstream, asked.Repository); err != nil {
		return q, err
	}
	q.endpoint = map[task.Kind]string{task.Manifest: endpointManifest, task.Blob: endpointBlob}[asked.Kind]
	if q.endpoint == endpointManifest && oci.IsTag(q.reference) {
		return q, nil
	}
	q.id, err = oci.ParseDigest(q.reference)
	return q, err
}

func answer(s saying, q question, at time.Time) api.LookupReply {
	out := api.LookupReply{Version: api.Version}
	switch {
	case s.err != nil:
		out.Unreached = fmt.Sprintf("%.1000s", s.err)
	case s.status != 0:
		out.Refusal = &api.RegistryError{Status: s.status, Header: s.header, Body: s.body}
	default:
		out.Digest, out.Length, out.MediaType = s.right.id, s.right.length, s.right.mediaType
		out.Yours = s.right.holder == q.holder()
		out.AgeMillis = max(0, time.Since(at).Milliseconds())
		if date := s.right.date; !date.IsZero() {
			out.DateSeconds = max(0, date.Unix())
		}
	}
	return out
}

// ServeHTTP answers one question. The headers go out at once, so that the asker can tell an
// owner that waits for a registry from one that is dead.
func (d *Desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "a question comes by POST", http.StatusMethodNotAllowed)
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.LookupMax))
	var q api.Lookup
	if err == nil {
		q, err = api.DecodeLookup(b)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	_ = json.NewEncoder(w).Encode(d.Answer(r.Context(), q))
}
