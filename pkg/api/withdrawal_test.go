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

func TestWithdrawalsAreReadBackAndNothingElseIs(t *testing.T) {
	id := task.ID("sha256:" + strings.Repeat("0a", 32))
	in := Withdrawals{Version: Version, List: []Withdrawal{{Task: id, At: time.Unix(1, 0).UTC()}}}
	b, err := json.Marshal(in)
	require.NoError(t, err)
	out, err := DecodeWithdrawals(b)
	require.NoError(t, err)
	assert.Equal(t, in, out)
	for _, bad := range []string{"", "[]", `{"version":0}`, `{"version":1,"list":[{"task":"../x"}]}`, `{"version":1,"list":{}}`,
		`{"version":1,"list":[` + strings.Repeat(`{},`, WithdrawalsMax) + `{}]}`, strings.Repeat(" ", WithdrawalsSize+1)} {
		_, err := DecodeWithdrawals([]byte(bad))
		assert.Error(t, err, "%.40s", bad)
	}
}

func FuzzDecodeWithdrawals(f *testing.F) {
	f.Add([]byte(`{"version":1,"list":[{"task":"sha256:` + strings.Repeat("0a", 32) + `","at":"2026-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"version":1,"list":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := DecodeWithdrawals(b)
		if err != nil {
			return
		}
		if len(w.List) > WithdrawalsMax {
			t.Fatalf("%d withdrawals", len(w.List))
		}
		for _, x := range w.List {
			if _, err := task.ParseID(string(x.Task)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
