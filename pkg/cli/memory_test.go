package cli

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMemoryOfTheCgroup(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(was) })
	unlimited := func() (uint64, error) { return 0, memlimit.ErrNoLimit }
	broken := func() (uint64, error) { return 0, errors.New("no such file") }
	for name, c := range map[string]struct {
		env      map[string]string
		provider memlimit.Provider
		want     int64
		log      string
	}{
		"nine tenths of the cgroup's limit": {nil, memlimit.Limit(1000 << 20), 900 << 20, "bytes=943718400"},
		"no limit":                          {nil, unlimited, math.MaxInt64, ""},
		"GOMEMLIMIT wins": {map[string]string{"GOMEMLIMIT": "1GiB"}, memlimit.Limit(1000 << 20),
			math.MaxInt64, ""},
		"another share": {map[string]string{"AUTOMEMLIMIT": "0.5"}, memlimit.Limit(1000 << 20), 500 << 20,
			"memory is limited"},
		"off":              {map[string]string{"AUTOMEMLIMIT": "off"}, memlimit.Limit(1000 << 20), math.MaxInt64, ""},
		"unreadable files": {nil, broken, math.MaxInt64, "set GOMEMLIMIT if there is one"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"GOMEMLIMIT", "AUTOMEMLIMIT"} {
				t.Setenv(v, "") // restores the variable at the end
				require.NoError(t, os.Unsetenv(v))
			}
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			debug.SetMemoryLimit(math.MaxInt64)
			var log bytes.Buffer
			limitMemory(slog.New(slog.NewTextHandler(&log, nil)), c.provider)
			assert.Equal(t, c.want, debug.SetMemoryLimit(-1))
			assert.Contains(t, log.String(), c.log)
			assert.Equal(t, c.log == "", log.Len() == 0, log.String())
		})
	}
}
