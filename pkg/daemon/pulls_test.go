package daemon

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/telemetry"
)

func TestStagesOfAPullAddUp(t *testing.T) {
	const ms = time.Millisecond
	for name, row := range map[string]struct {
		pull    registryproxy.Pull
		want    []telemetry.Stage
		slowest string
	}{
		"a cold pull": {
			registryproxy.Pull{Granted: 20 * ms, Opened: 70 * ms, FirstByte: 100 * ms, Total: 900 * ms},
			[]telemetry.Stage{{Name: "asking the registry", Took: 20 * ms}, {Name: "metadata", Took: 50 * ms},
				{Name: "first byte", Took: 30 * ms}, {Name: "body", Took: 800 * ms}},
			"body",
		},
		"one without a source": {
			registryproxy.Pull{Granted: 20 * ms, Total: 1000 * ms},
			[]telemetry.Stage{{Name: "asking the registry", Took: 20 * ms}, {Name: "metadata", Took: 980 * ms}},
			"metadata",
		},
		"one whose first byte did not come": {
			registryproxy.Pull{Granted: 1 * ms, Opened: 2 * ms, Total: 10 * ms},
			[]telemetry.Stage{{Name: "asking the registry", Took: 1 * ms}, {Name: "metadata", Took: 1 * ms},
				{Name: "first byte", Took: 8 * ms}},
			"first byte",
		},
		"one that the registry refused": {
			registryproxy.Pull{Total: 30 * ms}, []telemetry.Stage{{Name: "asking the registry", Took: 30 * ms}},
			"asking the registry",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := stages(row.pull)
			assert.Equal(t, row.want, got)
			var sum time.Duration
			for _, s := range got {
				sum += s.Took
			}
			assert.Equal(t, row.pull.Total, sum)
			assert.Equal(t, row.slowest, telemetry.Pull{Stages: got}.Slowest().Name)
		})
	}
}
