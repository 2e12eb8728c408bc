package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/darter-io/darter/pkg/task"
)

// PathLookups is where an owner asks registries on behalf of all hosts what a tag means and whether a
// credential may read a digest (POST, JSON: a Lookup; the response is a LookupReply). The owner sends the
// status and the headers at once, and the body when the registry has answered.
const PathLookups = "/api/v1/questions"

// Bounds on lookups and their replies, in bytes of JSON and in elements.
const (
	LookupMax      = 128 << 10
	LookupReplyMax = 64 << 10
	acceptMax      = 64   // media types in an Accept
	errorFieldsMax = 16   // values of the headers of a registry's error
	errorTextMax   = 4096 // bytes of one of them
)

// Lookup is one HEAD that a host would otherwise send to a registry itself. Its Authorization is a
// secret in plain text: a lookup goes to owners only, over TLS only, and no log shows it.
type Lookup struct {
	Version    int       `json:"version"`
	Upstream   string    `json:"upstream"`
	Repository string    `json:"repository"`
	Kind       task.Kind `json:"kind"` // task.Manifest or task.Blob
	// Reference is a digest, or the tag of a manifest.
	Reference     string   `json:"reference"`
	Accept        []string `json:"accept,omitempty"`
	Authorization string   `json:"authorization,omitempty"`
	// Agent is the User-Agent of one of the clients.
	Agent string `json:"agent,omitempty"`
	// Anonymous requests the token that the registry gives to all clients.
	Anonymous bool `json:"anonymous,omitempty"`
	// MaxAgeMillis is how old a reply about a tag may be.
	MaxAgeMillis int64 `json:"maxAgeMillis,omitempty"`
	// Doubts says that the host reads Doubted in the reply. Hosts of earlier versions do not, and get no doubted
	// permission.
	Doubts bool `json:"doubts,omitempty"`
	// LastKnown asks what the owner remembers, because the registry does not answer. It brings no Authorization. Owners of
	// earlier versions ask the registry.
	LastKnown bool `json:"lastKnown,omitempty"`
}

// Key is the rendezvous key of a lookup: all hosts send the same lookup to the same owner.
func (q Lookup) Key() string { return q.Upstream + "/" + q.Repository + ":" + q.Reference }

// String names the lookup, so that no verb prints the secret.
func (q Lookup) String() string { return string(q.Kind) + " " + q.Key() }

// Format keeps every verb from printing the secret.
func (q Lookup) Format(f fmt.State, _ rune) { fmt.Fprint(f, q.String()) }

// LogValue keeps log/slog from showing the secret.
func (q Lookup) LogValue() slog.Value { return slog.StringValue(q.String()) }

// LookupReply is a registry's answer to a Lookup, by way of an owner. Exactly one is set: Digest if the registry
// permitted the lookup, Refusal if it refused, Unreached if it did not answer.
type LookupReply struct {
	Version   int     `json:"version"`
	Digest    task.ID `json:"digest,omitempty"`
	Length    int64   `json:"length,omitempty"` // bytes; 0 when unknown
	MediaType string  `json:"mediaType,omitempty"`
	// Yours says that the registry gave its permission to the lookup's own credential. Otherwise it gave it to another
	// credential, and the host must still find out what its client may read.
	Yours bool `json:"yours,omitempty"`
	// AgeMillis is how long ago the registry answered.
	AgeMillis int64 `json:"ageMillis,omitempty"`
	// Doubted says that the registry has to show the blob before its permission counts: it ignored the Range of the
	// lookup, or a redirect led from HTTPS to plain HTTP, where an attacker on the path may have answered.
	Doubted bool `json:"doubted,omitempty"`
	// DateSeconds is when the registry answered by its own clock (its Date), in seconds since
	// 1970; 0 when unknown. A node's clock may be off, and a token ends by the registry's clock.
	DateSeconds int64          `json:"dateSeconds,omitempty"`
	Refusal     *RegistryError `json:"refusal,omitempty"`
	// Unreached is why there was no answer, for people; it holds no secret.
	Unreached string `json:"unreached,omitempty"`
	// LastKnown says that the reply is what the owner remembers: Digest is what the tag meant, or a digest that the
	// registry had, AgeMillis ago. It permits nothing.
	LastKnown bool `json:"lastKnown,omitempty"`
	// Public says that anonymous clients could read the digest, PublicAgeMillis ago, by the registry's answer to this
	// owner.
	Public          bool  `json:"public,omitempty"`
	PublicAgeMillis int64 `json:"publicAgeMillis,omitempty"`
}

// RegistryError is a registry's error response, unchanged as far as clients need it.
type RegistryError struct {
	Status int `json:"status"`
	// Header holds WWW-Authenticate, Retry-After and the body's Content-Type.
	Header map[string][]string `json:"header,omitempty"`
	// Body is cut at FailureMax.
	Body []byte `json:"body,omitempty"`
}

// DecodeLookup reads a lookup of at most LookupMax bytes and checks its form. The resolver that
// takes it checks the names in it.
func DecodeLookup(b []byte) (Lookup, error) {
	if len(b) > LookupMax {
		return Lookup{}, fmt.Errorf("lookup of more than %d bytes", LookupMax)
	}
	var wire struct {
		Lookup
		Accept json.RawMessage `json:"accept"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return Lookup{}, fmt.Errorf("reading a lookup: %w", err)
	}
	q := wire.Lookup
	if wire.Accept != nil {
		var err error
		if q.Accept, err = UnmarshalList[string](wire.Accept, acceptMax, LookupMax); err != nil {
			return Lookup{}, fmt.Errorf("reading a lookup: accept: %w", err)
		}
	}
	switch {
	case q.Version < 1 || q.Version > Version+1:
		return Lookup{}, fmt.Errorf("lookup of version %d, this owner speaks %d", q.Version, Version)
	case q.Kind != task.Manifest && q.Kind != task.Blob:
		return Lookup{}, fmt.Errorf("lookup of a %.40q, which no registry has", q.Kind)
	case q.MaxAgeMillis < 0:
		return Lookup{}, errors.New("lookup with a negative maxAgeMillis")
	}
	return q, nil
}

// DecodeLookupReply reads a reply of at most LookupReplyMax bytes and removes what no honest owner
// sends.
func DecodeLookupReply(b []byte) (LookupReply, error) {
	if len(b) > LookupReplyMax {
		return LookupReply{}, fmt.Errorf("reply of more than %d bytes", LookupReplyMax)
	}
	var a LookupReply
	if err := json.Unmarshal(b, &a); err != nil {
		return LookupReply{}, fmt.Errorf("reading a reply: %w", err)
	}
	_, err := task.ParseID(string(a.Digest))
	switch {
	case a.Version < 1 || a.Version > Version+1:
		return LookupReply{}, fmt.Errorf("reply of version %d, this host speaks %d", a.Version, Version)
	case a.Length < 0 || a.AgeMillis < 0 || a.PublicAgeMillis < 0 || a.DateSeconds < 0 || len(a.MediaType) > 255 ||
		len(a.Unreached) > errorTextMax:
		return LookupReply{}, errors.New("reply with numbers or texts that no registry gives")
	case a.Unreached != "":
		return LookupReply{Version: a.Version, Unreached: a.Unreached}, nil
	case a.Refusal != nil:
		return LookupReply{Version: a.Version, Refusal: a.Refusal}, a.Refusal.check()
	case err != nil:
		return LookupReply{}, fmt.Errorf("reply without a digest or a refusal: %w", err)
	}
	return a, nil
}

func (r *RegistryError) check() error {
	if r.Status < 400 || r.Status > 599 {
		return fmt.Errorf("reply with a refusal of status %d", r.Status)
	}
	r.Body = r.Body[:min(len(r.Body), FailureMax)]
	kept, values := map[string][]string{}, 0
	for _, name := range []string{"Www-Authenticate", "Retry-After", "Content-Type"} {
		for _, v := range http.Header(r.Header).Values(name) {
			if values++; values <= errorFieldsMax && len(v) <= errorTextMax {
				kept[name] = append(kept[name], v)
			}
		}
	}
	r.Header = kept
	return nil
}
