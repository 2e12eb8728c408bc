package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
)

func TestString(t *testing.T) {
	const word = "hunter2"
	s := secret.String(word)
	holder := struct {
		Token secret.String
		Ptr   *secret.String
	}{s, &s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		assert.NotContains(t, fmt.Sprintf(verb, s), word, verb)
		assert.NotContains(t, fmt.Sprintf(verb, s), "68756e74657232", verb)
		assert.NotContains(t, fmt.Sprintf(verb, holder), word, verb)
	}
	b, err := json.Marshal(holder)
	require.NoError(t, err)
	assert.NotContains(t, string(b), word)
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", s, "holder", holder)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", s, "holder", holder)
	assert.NotContains(t, out.String(), word)
	assert.Equal(t, word, s.Reveal())
	assert.Empty(t, fmt.Sprint(secret.String("")), "no secret prints as nothing")
}
