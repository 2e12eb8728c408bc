package api_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

func FuzzParseFileError(f *testing.F) {
	for _, s := range []string{
		`{"kind":"refused","status":403,"message":"no"}`, `{"kind":"refused","status":-1}`,
		`{"kind":"refused","status":999999}`, `{"kind":"x"}`, `{}`, `null`, `[]`, ``,
		`{"kind":"bad-request"} trailing`, `{"kind":"refused","status":"403"}`,
		`{"kind":"refused","message":"\u001b[31m"}`,
		`{"kind":null}`, "<html>502</html>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := api.ParseFileError(b)
		if !ok {
			return
		}
		require.NotEmpty(t, e.Kind)
		require.True(t, e.Code() >= 400 && e.Code() <= 599, "%s would be answered by %d", b, e.Code())
		_ = e.Error()
		again, err := json.Marshal(e)
		require.NoError(t, err)
		same, ok := api.ParseFileError(again)
		require.True(t, ok)
		require.Equal(t, e, same)
	})
}
