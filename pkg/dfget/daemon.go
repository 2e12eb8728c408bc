package dfget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
)

// viaDaemon fetches through dfdaemon's local API.
type viaDaemon struct {
	base   string
	client *http.Client
	set    config.Dfget
}

func newDaemon(cfg Config) *viaDaemon {
	tr := &http.Transport{Proxy: nil, DisableCompression: true, MaxIdleConnsPerHost: parallelMax}
	return &viaDaemon{
		base: "http://" + string(cfg.Settings.Daemon), client: &http.Client{Transport: tr}, set: cfg.Settings,
	}
}

func (d *viaDaemon) fetch(ctx context.Context, j *job, offset int64, identity string) (*answer, error) {
	q := url.Values{api.FileURL: {j.url.String()}}
	for name, v := range map[string]string{
		api.FileTag: d.set.Tag, api.FileApplication: d.set.Application, api.FileDigest: d.set.Digest,
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	q[api.FileIgnore] = d.set.IgnoreQuery
	if d.set.NoCache {
		q.Set(api.FileNoCache, "true")
	}
	if age, ok := d.set.MaxAge.Duration(); ok {
		q.Set(api.FileMaxAge, age.String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+api.PathFiles+"?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("building the request to dfdaemon: %w", err)
	}
	authorization, header := forwarded(j, d.set.Header)
	if !authorization.IsZero() {
		req.Header.Set(api.ForwardPrefix+"Authorization", authorization.Reveal())
	}
	for name, value := range header {
		req.Header.Set(api.ForwardPrefix+name, value.Reveal())
	}
	if offset > 0 && identity != "" {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
		req.Header.Set("If-Range", identity)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, d.noAnswer(j, offset, err)
	}
	a, err := answerOf(resp, offset, identity)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if a != nil {
		return a, nil
	}
	defer resp.Body.Close()
	return nil, d.errorAnswer(j, resp)
}

// noAnswer returns the error of a daemon that does not answer.
func (d *viaDaemon) noAnswer(j *job, offset int64, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // omits the long URL of the request
	}
	return &Error{Code: NoDaemon, retry: offset > 0, Err: fmt.Errorf("%s: no dfdaemon answers at %s (%w)\n"+
		"start one on this machine with: dfdaemon\nor name another one's local API with --daemon HOST:PORT, "+
		"be a peer in this process with --supernodes HOST:PORT, or download without peers with --direct",
		j.meter.url, d.set.Daemon, err)}
}

// answerOf turns a response with a file into an answer, and an error answer into nil.
func answerOf(resp *http.Response, offset int64, identity string) (*answer, error) {
	a := &answer{
		body: resp.Body, length: resp.ContentLength, identity: resp.Header.Get("ETag"),
		cached: resp.Header.Get(api.HeaderCached) == "true", unshared: resp.Header.Get(api.HeaderUnshared),
	}
	if text := resp.Header.Get(api.HeaderSources); text != "" {
		var s api.Sources
		if json.Unmarshal([]byte(text), &s) == nil {
			a.sources = &shares{s}
		}
	}
	if at, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		a.modified = at
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return a, nil
	case http.StatusPartialContent:
		first, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok {
			return nil, fmt.Errorf("the answer's Content-Range %.80q cannot be parsed", resp.Header.Get("Content-Range"))
		}
		a.offset, a.length = first, total
		return a, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// The target is already complete if the file ends where the range begins.
		total, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes */")
		if ok && total == strconv.FormatInt(offset, 10) {
			resp.Body.Close()
			a.body, a.offset, a.length, a.identity = http.NoBody, offset, offset, identity
			return a, nil
		}
	}
	return nil, nil
}

// contentRange parses "bytes first-last/total"; an unknown total is −1.
func contentRange(text string) (first, total int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, all, ok := strings.Cut(text, "/")
	from, _, dash := strings.Cut(span, "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if !ok || !dash || err != nil || first < 0 {
		return 0, 0, false
	}
	if all == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return first, total, err == nil && total >= first
}

// errorAnswer reads the daemon's error.
func (d *viaDaemon) errorAnswer(j *job, resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e, ok := api.ParseFileError(b)
	if !ok {
		return &Error{Code: Failed, Err: fmt.Errorf("%s: %s answers %s and is not a dfdaemon; name one with --daemon",
			j.meter.url, d.set.Daemon, resp.Status)}
	}
	return errorOf(j, e)
}

// progress asks the daemon for the bytes by source.
func (d *viaDaemon) progress(ctx context.Context, _ *job, identity string) (shares, bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	daemon := apiclient.Client{Base: d.base, Transport: d.client.Transport}
	s, err := daemon.Task(ctx, strings.Trim(identity, `"`))
	if err != nil {
		return shares{}, false
	}
	return shares{s.Received}, true
}

func (d *viaDaemon) close() { d.client.CloseIdleConnections() }
