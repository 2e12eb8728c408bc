package order

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/distribution/distribution/v3/notifications"

	"github.com/darter-io/darter/pkg/oci"
)

// EventsMax bounds the events of one request. distribution sends one at a time, Harbor one for each push.
const EventsMax = 256

// Event is one event of a webhook.
type Event struct {
	// Order is what was pushed; complete only if Ignored and Err are empty.
	Order Order
	// Ignored is why the event is no push of an image, empty for one.
	Ignored string
	// Err is why its order is refused.
	Err error
}

// Reasons to ignore an event.
const (
	notAPush    = "not a push"
	notAnImage  = "no manifest, but a blob"
	withoutATag = "pushed without a tag"
)

// ParseNotification reads notifications of distribution/v3, and those that Harbor's driver for Kraken sends, which
// spells the keys with capitals. named is the registry if the operator named it in the webhook's URL; without it, the
// URL of each event decides. The error concerns the whole body.
func ParseNotification(body []byte, named string, listed Listed) ([]Event, error) {
	var envelope struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := decode(body, &envelope); err != nil {
		return nil, err
	}
	if err := bounded(len(envelope.Events)); err != nil {
		return nil, err
	}
	out := make([]Event, len(envelope.Events))
	for i, raw := range envelope.Events {
		var e notifications.Event
		if out[i].Err = decode(raw, &e); out[i].Err == nil {
			out[i] = notification(e, named, listed)
		}
	}
	return out, nil
}

func bounded(events int) error {
	if events > EventsMax {
		return fmt.Errorf("%w: %d events, and at most %d are possible", ErrMalformed, events, EventsMax)
	}
	if events == 0 {
		return fmt.Errorf("%w: the body holds no event", ErrMalformed)
	}
	return nil
}

func notification(e notifications.Event, named string, listed Listed) (out Event) {
	t := e.Target
	switch {
	case e.Action != notifications.EventActionPush:
		return Event{Ignored: notAPush}
	case !oci.NamesContent(t.MediaType):
		return Event{Ignored: notAnImage}
	case t.Tag == "":
		return Event{Ignored: withoutATag}
	}
	if named != "" {
		out.Order, out.Err = pushed(named, t.Repository, t.Tag, string(t.Digest), listed)
		return out
	}
	if out.Order, out.Err = manifestURL(t.URL, listed); out.Err != nil {
		return out
	}
	// The URL of distribution names the digest, that of Harbor the tag.
	o, err := pushed(out.Order.Registry, t.Repository, t.Tag, string(t.Digest), listed)
	switch {
	case err != nil:
		out.Err = err
	case o.Repository != out.Order.Repository, out.Order.Tag != "" && o.Tag != out.Order.Tag,
		out.Order.Digest != "" && o.Digest != out.Order.Digest:
		out.Err = fmt.Errorf("%w: repository, tag or digest of the event are not those of its url", ErrMalformed)
	}
	out.Order = o
	return out
}

// pushed is the order for an image that was pushed to a registry.
func pushed(named, repository, tag, digest string, listed Listed) (o Order, err error) {
	if o.Registry, err = registry("https", named, listed); err != nil {
		return Order{}, err
	}
	if err = o.name(repository, tag); err == nil {
		err = o.setDigest(digest)
	}
	if err != nil {
		return Order{}, err
	}
	return o, nil
}

// ParseHarborEvent reads Harbor's webhook, in its default format or as a CloudEvent. named is as in
// [ParseNotification].
func ParseHarborEvent(body []byte, named string, listed Listed) ([]Event, error) {
	type data struct {
		Resources []struct {
			Digest string `json:"digest"`
			Tag    string `json:"tag"`
			URL    string `json:"resource_url"`
		} `json:"resources"`
		Repository struct {
			Name string `json:"repo_full_name"`
		} `json:"repository"`
	}
	var q struct {
		Type  string          `json:"type"`
		Event json.RawMessage `json:"event_data"`
		Data  json.RawMessage `json:"data"`
	}
	if err := decode(body, &q); err != nil {
		return nil, err
	}
	raw := q.Event
	switch q.Type {
	case "PUSH_ARTIFACT":
	case "harbor.artifact.pushed":
		raw = q.Data
	case "":
		return nil, fmt.Errorf("%w: the body has no type, so it is no webhook of Harbor", ErrMalformed)
	default:
		return []Event{{Ignored: notAPush}}, nil
	}
	var d data
	if len(raw) == 0 {
		return nil, fmt.Errorf("%w: the event names nothing that was pushed", ErrMalformed)
	}
	if err := decode(raw, &d); err != nil {
		return nil, err
	}
	if err := bounded(len(d.Resources)); err != nil {
		return nil, err
	}
	out := make([]Event, len(d.Resources))
	for i, r := range d.Resources {
		if r.Tag == "" || strings.Contains(r.Tag, ":") { // Harbor writes the digest in place of a tag
			out[i].Ignored = withoutATag
			continue
		}
		host, repository := named, d.Repository.Name
		if host == "" {
			var below string
			host, below, _ = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(r.URL, "https://"), "http://"), "/")
			if repository == "" {
				repository = strings.TrimSuffix(below, ":"+r.Tag)
			} else if below != repository+":"+r.Tag && below != repository+"@"+r.Digest {
				out[i].Err = fmt.Errorf("%w: resource_url names another image than repository and tag", ErrMalformed)
				continue
			}
		}
		out[i].Order, out[i].Err = pushed(host, repository, r.Tag, r.Digest, listed)
	}
	return out, nil
}
