package supernode

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/httpserver"
)

// publicRoutes are the routes for members of the cluster.
func (s *Supernode) publicRoutes() http.Handler {
	r := httpserver.NewRouter()
	r.POST(api.PathAnnounce, gin.WrapF(s.coordinator.HandleAnnounce))
	r.POST(api.PathLookups, gin.WrapH(s.lookups))
	s.node.RoutePurgeOrders(r)
	s.routeOwner(r)
	s.node.RouteHealth(r)
	return r
}

// adminRoutes are the routes for operators of this machine.
func (s *Supernode) adminRoutes() http.Handler {
	r := httpserver.NewRouter()
	s.routeOwner(r)
	s.node.RoutePurge(r, s.others)
	s.node.RouteAdmin(r)
	return r
}

// routeOwner adds the routes for both members and operators.
func (s *Supernode) routeOwner(r gin.IRouter) {
	s.node.RouteStatus(r, s.Status)
	r.GET(api.PathHosts, func(c *gin.Context) { c.JSON(http.StatusOK, s.coordinator.Hosts()) })
}
