package source_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/source"
)

func TestPatience(t *testing.T) {
	const now = "Tue, 01 Dec 2026 10:00:00 GMT"
	for _, c := range []struct {
		status      int
		date, after string
		want        time.Duration
	}{
		{429, now, "2", 2 * time.Second},
		{503, "", "2", 2 * time.Second},
		{503, now, "", 0},
		{503, now, "60", 0},
		{502, now, "2", 0},
		{429, now, "Tue, 01 Dec 2026 10:00:03 GMT", 3 * time.Second},
		{503, now, "Tuesday, 01-Dec-26 10:00:03 GMT", 3 * time.Second},
		{503, now, "Tue, 01 Dec 2026 11:00:03 GMT", 0},
		{503, now, "Tue, 01 Dec 2026 09:00:03 GMT", 0},
		{503, "", "Tue, 01 Dec 2026 10:00:03 GMT", 0},
		{503, now, "soon", 0},
	} {
		h := http.Header{"Retry-After": {c.after}, "Date": {c.date}}
		assert.Equal(t, c.want, source.Patience(c.status, h), "%+v", c)
	}
}
