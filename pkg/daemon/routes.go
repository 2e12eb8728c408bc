package daemon

import (
	"net/http"

	"github.com/darter-io/darter/pkg/node"
)

// localRoutes are the local API, files apart.
func (d *Daemon) localRoutes() http.Handler {
	r := node.NewRouter()
	d.node.RouteStatus(r, d.Status)
	d.node.RouteWithdraw(r, d.supernodes)
	d.node.RouteAdmin(r)
	return r
}
