package api

import (
	"encoding/json"
	"fmt"

	"github.com/darter-io/darter/pkg/preheat"
)

// Paths of preheating.
const (
	// PathPreheatJobs takes an operator's new job (POST) and lists the jobs (GET). With "/" + ID it tells one job (GET)
	// and cancels it (DELETE); "/gate" behind that tells who has it, "/pause" and "/resume" are for POST.
	PathPreheatJobs = "/api/v1/preheat/jobs"
	// PathPreheatOrders gives a host its own orders (GET). Without a cluster secret, ?host= names the host.
	PathPreheatOrders = "/api/v1/preheat/orders"
	// PathPreheatRecords gives a supernode the records of another one (GET), and takes them (POST).
	PathPreheatRecords = "/api/v1/preheat/records"
	// PathOpenAPI describes the operators' API (OpenAPI 3).
	PathOpenAPI = "/api/v1/openapi.json"
)

// PreheatLater is the mark of an owner that does not know its orders for a host yet: the host keeps those that it has.
const PreheatLater = "later"

// PreheatRecordsSize and PreheatOrdersSize bound the JSON of all records and of the orders for one host, in bytes.
const (
	PreheatRecordsSize = 64 << 20
	PreheatOrdersSize  = 64 << 20
)

// PreheatOrders are the orders for one host.
type PreheatOrders struct {
	Version int             `json:"version"`
	List    []preheat.Order `json:"list,omitempty"`
}

// DecodePreheatOrders reads orders of at most PreheatOrdersSize bytes.
func DecodePreheatOrders(b []byte) (PreheatOrders, error) {
	if len(b) > PreheatOrdersSize {
		return PreheatOrders{}, fmt.Errorf("preheat orders of more than %d bytes", PreheatOrdersSize)
	}
	var wire struct {
		PreheatOrders
		List json.RawMessage `json:"list"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return PreheatOrders{}, fmt.Errorf("reading preheat orders: %w", err)
	}
	out := wire.PreheatOrders
	if out.Version < 1 || out.Version > Version+1 {
		return PreheatOrders{}, fmt.Errorf("preheat orders of version %d, this host speaks %d", out.Version, Version)
	}
	if wire.List != nil {
		var err error
		if out.List, err = UnmarshalList[preheat.Order](wire.List, 2*preheat.JobsMax, 8<<20); err != nil {
			return PreheatOrders{}, fmt.Errorf("reading preheat orders: %w", err)
		}
	}
	for _, o := range out.List {
		if err := o.Check(); err != nil {
			return PreheatOrders{}, fmt.Errorf("reading preheat orders: %w", err)
		}
	}
	return out, nil
}
