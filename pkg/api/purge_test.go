package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/task"
)

func TestDecodePurgeOrders(t *testing.T) {
	id := task.ID("sha256:" + strings.Repeat("0a", 32))
	in := PurgeOrders{Version: Version, List: []PurgeOrder{{Task: id, At: time.Unix(1, 0).UTC()}}}
	b, err := json.Marshal(in)
	require.NoError(t, err)
	out, err := DecodePurgeOrders(b)
	require.NoError(t, err)
	assert.Equal(t, in, out)
	for _, bad := range []string{"", "[]", `{"version":0}`, `{"version":1,"list":[{"task":"../x"}]}`,
		`{"version":1,"list":[{"task":"` + string(id) + `","at":"9999-12-31T23:59:59-23:00"}]}`,
		`{"version":1,"list":[{"task":"` + string(id) + `","at":"0000-01-01T00:00:00+10:00"}]}`,
		`{"version":1,"list":{}}`, `{"version":1,"list":[` + strings.Repeat(`{},`, PurgeOrdersMax) + `{}]}`,
		strings.Repeat(" ", PurgeOrdersSize+1)} {
		_, err := DecodePurgeOrders([]byte(bad))
		assert.Error(t, err, "%.40s", bad)
	}
}

func FuzzDecodePurgeOrders(f *testing.F) {
	f.Add([]byte(`{"version":1,"list":[{"task":"sha256:` + strings.Repeat("0a", 32) +
		`","at":"2026-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"version":1,"list":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := DecodePurgeOrders(b)
		if err != nil {
			return
		}
		if len(w.List) > PurgeOrdersMax {
			t.Fatalf("%d orders", len(w.List))
		}
		for _, x := range w.List {
			if _, err := task.ParseID(string(x.Task)); err != nil {
				t.Fatal(err)
			}
			if _, err := json.Marshal(PurgeOrder{Task: x.Task, At: x.At.UTC()}); err != nil {
				t.Fatal(err) // a host could neither save it nor pass it on
			}
		}
	})
}
