package doors

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strings"

	"github.com/distribution/distribution/v3/notifications"
	"github.com/gin-gonic/gin"

	"github.com/darter-io/darter/pkg/httpserver"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/order"
	"github.com/darter-io/darter/pkg/telemetry"
)

// The paths. Harbor's drivers know those of their vendor; those of webhooks are ours.
const (
	pathJobs         = "/oapi/v1/jobs"
	pathPreheats     = "/preheats"
	pathKraken       = "/registry/notifications"
	pathDistribution = "/webhooks/distribution"
	pathHarbor       = "/webhooks/harbor"
)

// Bounds of bodies, in bytes. An event holds the descriptors of the layers.
const (
	orderMax  = 256 << 10
	eventsMax = 1 << 20
)

func doorOf(path string) telemetry.Door {
	for prefix, door := range map[string]telemetry.Door{
		pathJobs: telemetry.DoorJobs, pathPreheats: telemetry.DoorPreheats, pathKraken: telemetry.DoorKraken,
		pathDistribution: telemetry.DoorDistribution, pathHarbor: telemetry.DoorHarbor,
	} {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return door
		}
	}
	return telemetry.DoorOther
}

func (d *Doors) routes() http.Handler {
	r := httpserver.NewRouter()
	r.RedirectTrailingSlash = false
	for _, path := range []string{"/healthy", "/_ping", "/health"} {
		r.GET(path, func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{"status": "ok"}) })
	}
	r.POST(pathJobs, d.orders(telemetry.DoorJobs, order.ParseJob, func(c *gin.Context, out outcome) {
		c.JSON(http.StatusOK, order.AnswerJob(out.job))
	}))
	r.GET(pathJobs+"/:id", d.polls(numberRegexp, func(j preheat.Job) any { return order.AnswerJob(j) }))
	r.POST(pathPreheats, d.orders(telemetry.DoorPreheats, order.ParsePreheat, func(c *gin.Context, out outcome) {
		status := http.StatusOK
		if out.entry == telemetry.EntryKnown && out.job.State == preheat.Success {
			status = http.StatusAlreadyReported
		}
		c.JSON(status, gin.H{"ID": out.job.ID})
	}))
	r.GET(pathPreheats+"/:id", d.polls(idRegexp, func(j preheat.Job) any { return order.AnswerPreheat(j) }))
	r.POST(pathKraken, func(c *gin.Context) {
		if kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type")); err == nil &&
			kind == notifications.EventsMediaType {
			d.pushes(c, telemetry.DoorDistribution, order.ParseNotification)
			return
		}
		d.kraken(c)
	})
	r.POST(pathDistribution, func(c *gin.Context) { d.pushes(c, telemetry.DoorDistribution, order.ParseNotification) })
	r.POST(pathHarbor, func(c *gin.Context) { d.pushes(c, telemetry.DoorHarbor, order.ParseHarborEvent) })
	r.NoRoute(func(c *gin.Context) {
		problem(c.Writer, http.StatusNotFound, "this is the preheat API of a Darter supernode, and it has no such path; "+
			"set only scheme, host and port as the endpoint of the instance in Harbor; webhooks go to "+pathHarbor+" and "+
			pathDistribution)
	})
	r.NoMethod(func(c *gin.Context) {
		problem(c.Writer, http.StatusMethodNotAllowed, "this path of the preheat API does not take the method "+
			c.Request.Method)
	})
	return r
}

// problem answers with an error for people. Harbor shows the body to its administrator.
func problem(w http.ResponseWriter, status int, text string) {
	body, _ := json.Marshal(struct {
		Error string `json:"error"`
	}{text})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone if this fails
}

// body reads the body of a request, or answers and returns false.
func (d *Doors) body(c *gin.Context, door telemetry.Door, limit int64) (body []byte, ok bool) {
	refuse := func(entry telemetry.Entry, status int, text string) ([]byte, bool) {
		d.cfg.Metrics.Count(door, entry)
		problem(c.Writer, status, text)
		return nil, false
	}
	if e := c.GetHeader("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refuse(telemetry.EntryRefused, http.StatusUnsupportedMediaType, "send the body without Content-Encoding")
	}
	select {
	case d.bodies <- struct{}{}:
		defer func() { <-d.bodies }()
	default:
		c.Header("Retry-After", "1")
		return refuse(telemetry.EntryLimited, http.StatusServiceUnavailable, "too many orders arrive at once")
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return refuse(telemetry.EntryRefused, http.StatusRequestEntityTooLarge, "the body is larger than an order can be")
	case err != nil:
		return refuse(telemetry.EntryRefused, http.StatusBadRequest, "the body could not be read to its end")
	}
	return body, true
}

// statusOf is the status of an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, order.ErrForbidden):
		return http.StatusForbidden
	case errors.Is(err, order.ErrUnsupported):
		return http.StatusUnprocessableEntity
	case errors.Is(err, order.ErrMalformed), errors.Is(err, preheat.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, errLimited):
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

// refused answers with an error of a whole body, and counts it.
func (d *Doors) refused(c *gin.Context, door telemetry.Door, err error) {
	d.tell(door, outcome{}.failed(telemetry.EntryRefused, err))
	problem(c.Writer, statusOf(err), err.Error())
}

// orders serves the orders of a preheat policy of Harbor.
func (d *Doors) orders(door telemetry.Door, parse func([]byte, order.Listed) (order.Order, error),
	answer func(*gin.Context, outcome)) gin.HandlerFunc {
	return func(c *gin.Context) {
		body, ok := d.body(c, door, orderMax)
		if !ok {
			return
		}
		o, err := parse(body, d.cfg.Listed)
		if err != nil {
			d.refused(c, door, err)
			return
		}
		out := d.take(c, door, order.Policy, o)
		if out.err != nil {
			problem(c.Writer, statusOf(out.err), out.Error)
			return
		}
		answer(c, out)
	}
}

var (
	numberRegexp = regexp.MustCompile(`^[1-9][0-9]{0,15}$`)
	idRegexp     = regexp.MustCompile(`^[0-9a-f]{1,32}$`)
)

// polls serves the state of a job.
func (d *Doors) polls(valid *regexp.Regexp, answer func(preheat.Job) any) gin.HandlerFunc {
	return func(c *gin.Context) {
		id := c.Param("id")
		if !valid.MatchString(id) {
			problem(c.Writer, http.StatusBadRequest, "the path does not end in the id of a job")
			return
		}
		j, ok := d.cfg.Jobs.Get(id)
		if !ok {
			problem(c.Writer, http.StatusNotFound, "no job "+id+" is known; it ended long ago, or all supernodes were "+
				"restarted since")
			return
		}
		c.JSON(http.StatusOK, answer(j))
	}
}

// kraken serves Harbor's driver for Kraken, which takes every 2xx for a success and never polls.
func (d *Doors) kraken(c *gin.Context) {
	const door = telemetry.DoorKraken
	body, ok := d.body(c, door, eventsMax)
	if !ok {
		return
	}
	events, err := order.ParseNotification(body, c.Query("registry"), d.cfg.Listed)
	if err != nil {
		d.refused(c, door, err)
		return
	}
	for _, e := range events {
		switch {
		case e.Err != nil:
			d.refused(c, door, e.Err)
			return
		case e.Ignored != "":
			d.cfg.Metrics.Count(door, telemetry.EntryIgnored)
			problem(c.Writer, http.StatusUnprocessableEntity, "the event is ignored: "+e.Ignored+"; a registry sends its "+
				"notifications to "+pathDistribution)
			return
		}
	}
	outs := make([]outcome, len(events))
	for i, e := range events {
		outs[i] = d.take(c, door, order.Policy, e.Order)
		if outs[i].err != nil {
			problem(c.Writer, statusOf(outs[i].err), outs[i].Error)
			return
		}
	}
	c.JSON(http.StatusAccepted, gin.H{"events": outs})
}

// pushes serves a webhook. Its sender repeats a request that failed, distribution without end; so an event that can
// never become a job is answered with 200.
func (d *Doors) pushes(c *gin.Context, door telemetry.Door,
	parse func(body []byte, named string, listed order.Listed) ([]order.Event, error)) {
	body, ok := d.body(c, door, eventsMax)
	if !ok {
		return
	}
	events, err := parse(body, c.Query("registry"), d.cfg.Listed)
	if err != nil {
		d.refused(c, door, err)
		return
	}
	outs, status := make([]outcome, len(events)), http.StatusOK
	for i, e := range events {
		switch {
		case e.Err != nil:
			outs[i] = outcome{}.failed(telemetry.EntryRefused, e.Err)
			d.tell(door, outs[i])
		case e.Ignored != "":
			outs[i] = outcome{Ignored: e.Ignored, entry: telemetry.EntryIgnored}
			d.cfg.Metrics.Count(door, telemetry.EntryIgnored)
		default:
			outs[i] = d.take(c, door, order.Push, e.Order)
		}
		switch {
		case outs[i].entry == telemetry.EntryLimited || outs[i].entry == telemetry.EntryFailed:
			// The sender shall repeat it. Events before this one find their jobs then.
			problem(c.Writer, statusOf(outs[i].err), outs[i].Error)
			return
		case outs[i].Job != "":
			status = http.StatusAccepted
		}
	}
	c.JSON(status, gin.H{"events": outs})
}
