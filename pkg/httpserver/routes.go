package httpserver

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// NewRouter returns a gin engine for the APIs of this project: it logs nothing, ignores the client addresses that
// proxies name, ends a handler's work when its client leaves, and responds to every request.
func NewRouter() *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.HandleMethodNotAllowed = true
	r.ContextWithFallback = true
	_ = r.SetTrustedProxies(nil)
	r.Use(gin.CustomRecovery(brokenRoute), answeredRoute)
	return r
}

// answeredRoute is [gate.guard] for gin, which itself responds with 200 for a handler that wrote nothing.
func answeredRoute(c *gin.Context) {
	c.Next()
	if !c.Writer.Written() && c.Writer.Status() == http.StatusOK {
		refuse(c.Writer, c.Request, unanswered)
		c.Writer.WriteHeaderNow()
	}
}

// brokenRoute ends a route that panicked: with a 500, or, if the response has begun, by closing the connection, because
// a response without a length would look complete.
func brokenRoute(c *gin.Context, _ any) {
	if c.Writer.Written() {
		panic(http.ErrAbortHandler)
	}
	c.AbortWithStatus(http.StatusInternalServerError)
}
