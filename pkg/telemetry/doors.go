package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Door is one of the APIs with which other programs order preheats.
type Door string

// The doors.
const (
	DoorJobs         Door = "jobs"         // Harbor 2.12 and later
	DoorPreheats     Door = "preheats"     // Harbor 2.1 to 2.11
	DoorKraken       Door = "kraken"       // Harbor's driver for Kraken
	DoorDistribution Door = "distribution" // notifications of distribution/v3
	DoorHarbor       Door = "harbor"       // Harbor's webhook
	DoorOther        Door = "other"        // another path
)

var allDoors = []Door{DoorJobs, DoorPreheats, DoorKraken, DoorDistribution, DoorHarbor, DoorOther}

// Entry is what became of a request, or of one event in it.
type Entry string

// The entries.
const (
	EntryJob     Entry = "job"     // a job began
	EntryKnown   Entry = "known"   // a job for it was there
	EntryIgnored Entry = "ignored" // no rule wants it
	EntryRefused Entry = "refused" // malformed, or not allowed
	EntryDenied  Entry = "denied"  // without a right credential
	EntryLimited Entry = "limited" // too many requests
	EntryFailed  Entry = "failed"  // no job could be created
)

var allEntries = []Entry{EntryJob, EntryKnown, EntryIgnored, EntryRefused, EntryDenied, EntryLimited, EntryFailed}

// Doors counts the orders of other programs to preheat.
type Doors struct{ orders *prometheus.CounterVec }

// NewDoors registers the group.
func NewDoors(reg prometheus.Registerer) *Doors {
	d := &Doors{orders: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "darter_preheat_orders_total", Help: "Orders of other programs to preheat, by API and what became of them.",
	}, []string{"door", "entry"})}
	for _, door := range allDoors {
		for _, entry := range allEntries {
			d.orders.WithLabelValues(string(door), string(entry))
		}
	}
	reg.MustRegister(d.orders)
	return d
}

// Count counts an order.
func (d *Doors) Count(door Door, entry Entry) {
	if d != nil {
		d.orders.WithLabelValues(known(door, allDoors, DoorOther), known(entry, allEntries, EntryFailed)).Inc()
	}
}
