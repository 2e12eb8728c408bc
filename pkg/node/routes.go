package node

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// RouteStatus adds what operators and other programs ask: status and tasks.
func (n *Node) RouteStatus(r gin.IRouter, status func() api.Status) {
	r.GET(api.PathStatus, func(c *gin.Context) { c.JSON(http.StatusOK, n.judged(c, status())) })
	r.GET(api.PathTasks, func(c *gin.Context) { c.JSON(http.StatusOK, n.Tasks()) })
	r.GET(api.PathTasks+"/:id", func(c *gin.Context) {
		id, err := task.ParseID(c.Param("id"))
		if err != nil {
			c.JSON(http.StatusBadRequest, gin.H{"error": err.Error()})
			return
		}
		if t, ok := n.Task(id); ok {
			c.JSON(http.StatusOK, t)
			return
		}
		c.JSON(http.StatusNotFound, gin.H{"error": "task " + id.Short() + " is not here"})
	})
}

// RoutePurgeOrders adds the exchange of purge orders between members.
func (n *Node) RoutePurgeOrders(r gin.IRouter) {
	r.GET(api.PathPurgeOrders, gin.WrapF(n.Purge.ServeOrders))
	r.POST(api.PathPurgeOrders, gin.WrapF(n.Purge.ServeOrders))
	r.GET(api.PathPurgeProgress+"/:id", func(c *gin.Context) { n.Purge.ServeProgress(c.Writer, c.Param("id")) })
}

// RoutePurge adds purging for operators of this machine. supernodes lists those that take the order first.
func (n *Node) RoutePurge(r gin.IRouter, supernodes func() []string) {
	r.DELETE(api.PathPurge+"/:id", func(c *gin.Context) {
		n.Purge.ServePurge(c.Writer, c.Request, c.Param("id"), supernodes())
	})
}

// RouteAdmin adds health, metrics and profiles. Profiles tell a lot of a process: for
// loopback only.
func (n *Node) RouteAdmin(r gin.IRouter) {
	admin := gin.WrapH(telemetry.Admin(n.Metrics, n.Ready, version.Read(), n.Log))
	r.GET("/", admin)
	n.RouteHealth(r)
	r.GET("/metrics", admin)
	r.GET("/debug/pprof/*name", admin)
}

// RouteHealth adds health alone.
func (n *Node) RouteHealth(r gin.IRouter) {
	r.GET("/healthz", func(c *gin.Context) { c.String(http.StatusOK, "ok\n") })
	r.GET("/readyz", gin.WrapH(n.Ready))
}
