package version

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestRead(t *testing.T) {
	stamped := &debug.BuildInfo{
		Main:     debug.Module{Version: "v0.0.0-20260102030405-0123456789ab+dirty"},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}},
	}
	for _, row := range []struct {
		name            string
		version, commit string // as the linker set them
		info            *debug.BuildInfo
		want            Build
	}{
		{"the linker's word comes first", "v1.2.3", "ffffffffffff", stamped,
			Build{Version: "v1.2.3", Commit: "ffffffffffff"}},
		{"go build in a clone", "", "", stamped,
			Build{Version: "v0.0.0-20260102030405-0123456789ab+dirty", Commit: "0123456789ab"}},
		{"go install of a tag", "", "", &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}},
			Build{Version: "v1.2.3"}},
		{"go build without git", "", "", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}},
			Build{Version: Unknown}},
		{"a commit without a version", "", "", &debug.BuildInfo{
			Main: debug.Module{Version: "(devel)"}, Settings: stamped.Settings,
		}, Build{Version: "0123456789ab", Commit: "0123456789ab"}},
		{"no build information", "", "", nil, Build{Version: Unknown}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.want.Go = runtime.Version()
			assert.Equal(t, row.want, read(row.version, row.commit, row.info))
		})
	}
}

func TestBuildString(t *testing.T) {
	assert.Equal(t, "v1.2.3, commit 0123456789ab, go1.26.0",
		Build{Version: "v1.2.3", Commit: "0123456789ab", Go: "go1.26.0"}.String())
	assert.Equal(t, "devel, go1.26.0", Build{Version: Unknown, Go: "go1.26.0"}.String())
}
