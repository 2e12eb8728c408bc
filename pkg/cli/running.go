package cli

import (
	"context"
	"reflect"
	"time"

	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
)

// AskTimeout bounds a request to a program of this machine. A closed port refuses at once, so only a program that lacks
// CPU time or hangs takes as long.
const AskTimeout = 10 * time.Second

// Adopt takes the registries and the address of the mirror from the daemon that runs at api.listen, where the settings
// are the defaults: it may have been started with flags. It reports whether it took any, and whether the registries are
// the defaults.
func Adopt(ctx context.Context, cfg *config.Dfdaemon) (adopted, standard bool, err error) {
	var defaults config.Dfdaemon
	if err := config.NewForm("dfdaemon", &defaults).Load(nil); err != nil {
		return false, false, err
	}
	standard = reflect.DeepEqual(defaults.Upstreams, cfg.Upstreams)
	own := cfg.Mirror.Listen != defaults.Mirror.Listen
	if !standard && own {
		return false, standard, nil
	}
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	s, err := apiclient.FetchStatus(ctx, "dfdaemon", string(cfg.API.Listen))
	if err != nil {
		return false, standard, nil // none runs there, or none of this version: the settings decide
	}
	if mirror := config.Address(s.Listen["mirror"]); !own && mirror != "" && mirror != cfg.Mirror.Listen {
		cfg.Mirror.Listen, adopted = mirror, true
	}
	if !standard || len(s.Upstreams) == 0 {
		return adopted, standard, nil
	}
	var list []config.Upstream
	for _, u := range s.Upstreams {
		list = append(list, config.Upstream{Host: u.Host, URLs: u.URLs, PlainHTTP: u.PlainHTTP, CA: u.CA,
			ClientCert: u.ClientCert, ClientKey: u.ClientKey})
	}
	if standard = reflect.DeepEqual(defaults.Upstreams, list); !standard {
		cfg.Upstreams, adopted = list, true
	}
	return adopted, standard, nil
}
