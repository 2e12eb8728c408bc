package httpserver

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// NewRouter returns a gin engine as every API here wants it: silent, believing no proxy's
// word on who a client is, ending a handler's work when its client goes, and leaving no request
// without an answer.
func NewRouter() *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.HandleMethodNotAllowed = true
	r.ContextWithFallback = true
	_ = r.SetTrustedProxies(nil)
	r.Use(gin.CustomRecovery(brokenRoute), answeredRoute)
	return r
}

// answeredRoute is [answered] for gin, which says 200 itself where a handler said nothing.
func answeredRoute(c *gin.Context) {
	c.Next()
	if !c.Writer.Written() && c.Writer.Status() == http.StatusOK {
		refuseUnanswered(c.Writer, c.Request)
		c.Writer.WriteHeaderNow()
	}
}

// brokenRoute ends a route that panicked: with a 500, or where the answer has begun with the
// connection, because an answer without a length would look whole.
func brokenRoute(c *gin.Context, _ any) {
	if c.Writer.Written() {
		panic(http.ErrAbortHandler)
	}
	c.AbortWithStatus(http.StatusInternalServerError)
}
