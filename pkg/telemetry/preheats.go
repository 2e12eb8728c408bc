package telemetry

import "github.com/prometheus/client_golang/prometheus"

// PreheatStates are the states of the label of the preheat metric.
var PreheatStates = []string{"pending", "running", "paused", "success", "failed", "cancelled"}

// preheatsCollector reads the jobs at each scrape.
type preheatsCollector struct {
	count func() map[string]int
	jobs  *prometheus.Desc
}

// NewPreheats registers the metric of the preheat jobs that a supernode knows. A scrape calls count once: the jobs by
// state.
func NewPreheats(reg prometheus.Registerer, count func() map[string]int) {
	reg.MustRegister(&preheatsCollector{count, prometheus.NewDesc("darter_preheat_jobs",
		"Preheat jobs that this supernode knows, by state; every supernode knows all.", []string{"state"}, nil)})
}

func (c *preheatsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.jobs }

func (c *preheatsCollector) Collect(ch chan<- prometheus.Metric) {
	by := c.count()
	for _, s := range PreheatStates {
		ch <- prometheus.MustNewConstMetric(c.jobs, prometheus.GaugeValue, float64(by[s]), s)
	}
}
