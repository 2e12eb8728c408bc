package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
)

// secrets checks the permissions of files with secrets.
func (x *exam) secrets(context.Context) []Finding {
	files := append(config.SecretFiles(x.Settings.Cluster, x.Settings.Origins), x.Settings.Proxy.SecretFiles()...)
	var out []Finding
	for _, f := range files {
		warning, err := config.SecretFileMode(f.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			// Another check reports a missing file; without permission the wrong user runs this program.
		case err != nil:
			out = append(out, Finding{Fail, "secrets", f.Key + ": " + err.Error(),
				"change its mode, and the secret if another user may have read it"})
		case warning != "":
			out = append(out, Finding{Warn, "secrets", f.Key + ": " + warning, "change its mode"})
		}
	}
	if len(out) == 0 {
		out = []Finding{{OK, "secrets", cli.Plural(len(files), "file", "files") + " with secrets: safe permissions", ""}}
	}
	return out
}

// refused reports announces that an owner rejected recently, mostly two hosts with the same ID.
func refused(name string, s api.Status) (out []Finding) {
	for _, o := range s.RefusedHosts {
		out = append(out, Finding{Warn, name, fmt.Sprintf("rejected %s from %s: %s",
			cli.Plural(o.Times, "announce", "announces"), o.Addr, o.Reason),
			"check that host; with a copied data directory, this version takes a new ID automatically"})
	}
	return out
}
