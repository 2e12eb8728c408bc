package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/node"
)

// secrets tells who besides their owner may use the files that hold secrets.
func (x *exam) secrets(context.Context) []Finding {
	files := node.SecretFiles(x.Settings.Cluster, x.Settings.Origins)
	if key := x.Settings.Proxy.CAKey; key != "" {
		files = append(files, [2]string{"proxy.caKey", key})
	}
	var out []Finding
	for _, f := range files {
		warning, err := config.SecretFileMode(f[1])
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			// Another check tells of the first; the second may be the user that asks.
		case err != nil:
			out = append(out, Finding{Fail, "secrets", f[0] + ": " + err.Error(), "change its mode, and the secret with it if others had it"})
		case warning != "":
			out = append(out, Finding{Warn, "secrets", f[0] + ": " + warning, "change its mode"})
		}
	}
	if len(out) == 0 {
		out = []Finding{{OK, "secrets", fmt.Sprintf("%d files with secrets, none of which others may use", len(files)), ""}}
	}
	return out
}

// refused tells of announces that an owner refused lately: two hosts with one ID, above all.
func refused(name string, s api.Status) (out []Finding) {
	for _, o := range s.Offenders {
		out = append(out, Finding{Warn, name, fmt.Sprintf("refused %d announces from %s: %s", o.Times, o.Addr, o.Reason), "look at that host; one with a copied data directory takes another ID by itself when it is of this version"})
	}
	return out
}
