package daemon

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/httpserver"
)

// memberRoutes serve the members of the cluster, which send this node the same requests as a supernode.
func (d *Daemon) memberRoutes() http.Handler {
	r := httpserver.NewRouter()
	r.POST(api.PathAnnounce, gin.WrapF(d.coordinator.HandleAnnounce))
	r.POST(api.PathLookups, gin.WrapH(d.lookups))
	d.node.RoutePurgeOrders(r)
	d.node.RouteStatus(r, d.Status)
	d.node.RouteHealth(r)
	return r
}

// localRoutes are the local API without the files.
func (d *Daemon) localRoutes() http.Handler {
	r := httpserver.NewRouter()
	d.node.RouteStatus(r, d.localStatus)
	d.node.RoutePurge(r, d.supernodes)
	d.node.RouteAdmin(r)
	return r
}
