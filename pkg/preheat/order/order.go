// Package order reads what other programs send to order a preheat: Harbor's three dialects for preheat providers, the
// notifications of distribution/v3, and Harbor's webhook. It decides which of them become jobs, and for which hosts.
//
// An order never names a registry that the operator did not list, whatever the request says, and its credential belongs
// to the registry of its own URL only. All is a pure function of bytes and values. Start at [Order] and [Decide].
package order

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// Order is an image that another program wants on hosts of the cluster.
type Order struct {
	// Registry is listed by the operator, in the spelling of that list; Repository is below it.
	Registry, Repository string
	// Tag or Digest names the manifest. With both, the digest decides.
	Tag    string
	Digest task.ID
	// Platform is that of the order, empty for all.
	Platform string
	// Scope is the order's own, empty if it names none.
	Scope preheat.ScopeKind
	// Authorization is the header for this registry, empty for the nodes' own credentials.
	Authorization secret.String
}

// Image is the image's name without tag and digest, as globs see it: "harbor.corp/shop/web".
func (o Order) Image() string { return o.Registry + "/" + o.Repository }

// Reference is the whole name of the image.
func (o Order) Reference() string {
	name := o.Image()
	if o.Tag != "" {
		name += ":" + o.Tag
	}
	if o.Digest != "" {
		name += "@" + string(o.Digest)
	}
	return name
}

// Listed reports whether the operator listed a registry, by the name that [oci.ParseHost] returned.
type Listed func(registry string) bool

// The reasons to refuse an order. Each error of this package wraps one of them.
var (
	// ErrMalformed reports a body that is not what its path takes.
	ErrMalformed = errors.New("malformed order")
	// ErrForbidden reports an order for a registry, or a URL, that the operator does not allow.
	ErrForbidden = errors.New("order not allowed")
	// ErrUnsupported reports an order for something else than an image of a registry.
	ErrUnsupported = errors.New("order not supported")
)

// Bounds of orders, in bytes.
const (
	urlMax           = 2048
	authorizationMax = 8 << 10
)

// decode parses a body of JSON; the error says which key has the wrong type.
func decode(body []byte, into any) error {
	err := json.Unmarshal(body, into)
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		key := wrong.Field
		if key == "" {
			key = "the body"
		}
		value, _, _ := strings.Cut(wrong.Value, " ") // without the number itself
		return fmt.Errorf("%w: %.100s is a JSON %s and cannot be one there", ErrMalformed, key, value)
	case errors.As(err, &syntax):
		return fmt.Errorf("%w: the body is not JSON: %w at byte %d", ErrMalformed, syntax, syntax.Offset)
	case err != nil: // for example of a time; its text could repeat the body
		return fmt.Errorf("%w: a value in the body has the wrong form", ErrMalformed)
	}
	return nil
}

// registry returns the listed registry at the host of a URL. The default port of the scheme may be there or not.
func registry(scheme, host string, listed Listed) (string, error) {
	name, err := oci.ParseHost(host)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	candidates := []string{name}
	port := map[string]string{"http": ":80", "https": ":443"}[scheme]
	if bare, has := strings.CutSuffix(name, port); has && port != "" {
		candidates = append(candidates, bare)
	} else if !strings.Contains(name[strings.LastIndexByte(name, ']')+1:], ":") && port != "" {
		candidates = append(candidates, name+port)
	}
	for _, c := range candidates {
		c, err := oci.ParseHost(c)
		if err == nil && listed(c) {
			return c, nil
		}
	}
	return "", fmt.Errorf("%w: registry %q is not in the upstreams of this supernode; if its images may be preheated, "+
		"add it there and on the nodes", ErrForbidden, name)
}

// manifestURL parses the URL of a manifest: https://REGISTRY/v2/REPOSITORY/manifests/TAG-OR-DIGEST.
func manifestURL(text string, listed Listed) (o Order, err error) {
	const form = "write https://REGISTRY/v2/REPOSITORY/manifests/TAG"
	if len(text) > urlMax {
		return o, fmt.Errorf("%w: the url has %d bytes, and may have %d", ErrMalformed, len(text), urlMax)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Opaque != "" || u.Host == "":
		return o, fmt.Errorf("%w: the url cannot be parsed; %s", ErrMalformed, form)
	case u.Scheme != "http" && u.Scheme != "https":
		return o, fmt.Errorf("%w: the url begins with %.20q; %s", ErrMalformed, u.Scheme, form)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(text, "#"):
		return o, fmt.Errorf("%w: the url has a user, a query or a fragment; %s", ErrMalformed, form)
	case u.RawPath != "" || u.EscapedPath() != u.Path || strings.Contains(text, "%"):
		return o, fmt.Errorf("%w: the path of the url is escaped; %s", ErrMalformed, form)
	}
	if o.Registry, err = registry(u.Scheme, u.Host, listed); err != nil {
		return Order{}, err
	}
	rest, ok := strings.CutPrefix(u.Path, "/v2/")
	i := strings.LastIndex(rest, "/manifests/")
	if !ok || i < 0 {
		return Order{}, fmt.Errorf("%w: the url names no manifest; %s", ErrMalformed, form)
	}
	reference := rest[i+len("/manifests/"):]
	if err := o.name(rest[:i], reference); err != nil {
		return Order{}, err
	}
	return o, nil
}

// name sets repository and tag, or the digest in place of the tag.
func (o *Order) name(repository, reference string) (err error) {
	if !oci.LooksLikeHost(o.Registry) {
		// A reference without a dot or colon in its first part means Docker Hub.
		return fmt.Errorf("%w: registry %q has neither a dot nor a port, so no image name can hold it; list it with its "+
			"port", ErrForbidden, o.Registry)
	}
	if o.Repository, err = oci.ParseRepository(o.Registry, repository); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if strings.Contains(reference, ":") {
		if o.Digest, err = oci.ParseDigest(reference); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		return nil
	}
	if !oci.IsTag(reference) {
		return fmt.Errorf("%w: %.130q is no tag", ErrMalformed, reference)
	}
	o.Tag = reference
	return nil
}

// setDigest sets the digest that a request names besides its URL; an empty one changes nothing.
func (o *Order) setDigest(digest string) error {
	if digest == "" {
		return nil
	}
	id, err := oci.ParseDigest(digest)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if o.Digest != "" && o.Digest != id {
		return fmt.Errorf("%w: the digest is not that of the url", ErrMalformed)
	}
	o.Digest = id
	return nil
}

// authorize takes the Authorization out of the headers of an order. All others are left out: a registry needs none.
func (o *Order) authorize(headers map[string]string) error {
	found := false
	for name, value := range headers {
		if !strings.EqualFold(strings.TrimSpace(name), "Authorization") {
			continue
		}
		if found {
			return fmt.Errorf("%w: headers holds Authorization twice", ErrMalformed)
		}
		found = true
		value = strings.TrimSpace(value)
		scheme, credential, _ := strings.Cut(value, " ")
		switch {
		case len(value) > authorizationMax:
			return fmt.Errorf("%w: the Authorization in headers has %d bytes, and may have %d", ErrMalformed, len(value),
				authorizationMax)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
			return fmt.Errorf("%w: the Authorization in headers has characters that a header cannot have", ErrMalformed)
		case value == "" || strings.TrimSpace(credential) == "" && isScheme(scheme):
			// A public project: Harbor may send the scheme alone.
		case !isScheme(scheme):
			return fmt.Errorf("%w: the Authorization in headers is neither Bearer nor Basic", ErrMalformed)
		default:
			o.Authorization = secret.String(value)
		}
	}
	return nil
}

func isScheme(s string) bool { return strings.EqualFold(s, "Bearer") || strings.EqualFold(s, "Basic") }
