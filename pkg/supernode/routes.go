package supernode

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/preheat/jobs"
)

// publicRoutes are the routes for members of the cluster.
func (s *Supernode) publicRoutes() http.Handler {
	r := httpserver.NewRouter()
	r.POST(api.PathAnnounce, gin.WrapF(s.coordinator.HandleAnnounce))
	r.POST(api.PathLookups, gin.WrapH(s.lookups))
	s.node.RoutePurgeOrders(r)
	r.GET(api.PathPreheatOrders, gin.WrapF(s.preheats.ServeOrders))
	r.GET(api.PathPreheatRecords, gin.WrapF(s.preheats.ServeRecords))
	r.POST(api.PathPreheatRecords, gin.WrapF(s.preheats.ServeRecords))
	s.routeOwner(r)
	s.node.RouteHealth(r)
	return r
}

// adminRoutes are the routes for operators of this machine.
func (s *Supernode) adminRoutes() http.Handler {
	r := httpserver.NewRouter()
	s.routeOwner(r)
	s.node.RoutePurge(r, s.others)
	s.routePreheats(r)
	s.node.RouteAdmin(r)
	return r
}

// routePreheats adds the preheat jobs for operators.
func (s *Supernode) routePreheats(r gin.IRouter) {
	p := s.preheats
	r.POST(api.PathPreheatJobs, gin.WrapF(p.ServeCreate))
	r.GET(api.PathPreheatJobs, func(c *gin.Context) { p.ServeList(c.Writer) })
	r.GET(api.PathPreheatJobs+"/:id", func(c *gin.Context) { p.ServeJob(c.Writer, c.Param("id")) })
	r.GET(api.PathPreheatJobs+"/:id/gate", func(c *gin.Context) { p.ServeGate(c.Writer, c.Param("id")) })
	r.GET(api.PathOpenAPI, func(c *gin.Context) { jobs.ServeOpenAPI(c.Writer) })
	change := func(wish jobs.Change) gin.HandlerFunc {
		return func(c *gin.Context) { p.ServeChange(c.Writer, c.Request, c.Param("id"), wish) }
	}
	r.DELETE(api.PathPreheatJobs+"/:id", change(jobs.Cancel))
	r.POST(api.PathPreheatJobs+"/:id/pause", change(jobs.Pause))
	r.POST(api.PathPreheatJobs+"/:id/resume", change(jobs.Resume))
}

// routeOwner adds the routes for both members and operators.
func (s *Supernode) routeOwner(r gin.IRouter) {
	s.node.RouteStatus(r, s.Status)
	r.GET(api.PathHosts, func(c *gin.Context) { c.JSON(http.StatusOK, s.coordinator.Hosts()) })
}
