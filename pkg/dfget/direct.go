package dfget

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/version"
)

// direct fetches files from their origin.
type direct struct {
	origin *httporigin.Origin
	set    config.Dfget
}

func newDirect(cfg Config) (*direct, error) {
	o, err := httporigin.New(httporigin.Config{
		// The user can reach every address and send every header anyway, and the file is not shared.
		AllowAddrs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		UserAgent:  "dfget/" + version.Current(),
		AnyHeader:  true,
	})
	return &direct{o, cfg.Settings}, err
}

func (d *direct) fetch(ctx context.Context, j *job, offset int64, identity string) (*answer, error) {
	spec := task.Spec{Kind: task.Plain, URL: j.url.String()}
	spec.Authorization, spec.Header = forwarded(j, d.set.Header)
	// Cache-Control addresses the caches in front of the origin.
	control := sharing.Control{NoCache: d.set.NoCache, MaxAge: -1}
	if age, ok := d.set.MaxAge.Duration(); ok {
		control.MaxAge = age
	}
	if value := control.Header(); value != "" {
		spec.Header["Cache-Control"] = secret.String(value)
	}
	var known bool
	if spec.Validator, spec.Length, known = parseIdentity(identity); !known || spec.Validator == "" {
		offset = 0 // without a validator, the file may have changed unnoticed
	}
	a, err := d.open(ctx, spec, offset)
	var changed *source.ChangedError
	if errors.As(err, &changed) && offset > 0 {
		spec.Validator, spec.Length = "", 0
		a, err = d.open(ctx, spec, 0)
	}
	if err != nil {
		e := httporigin.FileError(err)
		if e.Untrusted {
			e.Message += "; set SSL_CERT_FILE to a file with the certificate authority (PEM)"
		}
		return nil, errorOf(j, e)
	}
	return a, nil
}

func (d *direct) open(ctx context.Context, spec task.Spec, offset int64) (*answer, error) {
	if spec.Length > 0 && offset == spec.Length {
		offset-- // an empty range cannot be requested; one byte comes again
	}
	res, err := d.origin.Open(ctx, spec, offset)
	if err != nil {
		return nil, err
	}
	a := &answer{body: res.Body, offset: offset, length: res.Length, modified: res.Modified}
	if res.Validator != "" {
		a.identity = fmt.Sprintf("direct %d %s", res.Length, res.Validator)
	}
	return a, nil
}

// parseIdentity parses the identity of a file that was fetched directly.
func parseIdentity(identity string) (validator string, length int64, ok bool) {
	rest, ok := strings.CutPrefix(identity, "direct ")
	number, validator, _ := strings.Cut(rest, " ")
	length, err := strconv.ParseInt(number, 10, 64)
	return validator, max(length, 0), ok && err == nil
}

// progress returns nothing: all bytes come from the origin.
func (d *direct) progress(context.Context, *job, string) (shares, bool) { return shares{}, false }

func (d *direct) close() { d.origin.CloseIdleConnections() }
