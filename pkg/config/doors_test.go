package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/rules"
)

// loadDoors returns the doors of a supernode with this file, and the error of loading it.
func loadDoors(t *testing.T, file string) (Doors, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "supernode.yaml")
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	cfg := new(Supernode)
	f := NewForm("supernode", cfg)
	fs := pflag.NewFlagSet("supernode", pflag.ContinueOnError)
	f.Bind(fs)
	require.NoError(t, fs.Parse([]string{"--config", path}))
	err := f.Load([]string{"DARTER_NODE_DATA_DIR=" + t.TempDir()})
	return cfg.Preheat.Doors, err
}

func TestDoorsNeedACredential(t *testing.T) {
	for lines, says := range map[string]string{
		"listen: 127.0.0.1:65010":                                                   "set preheat.doors.tokenFile",
		"listen: :65010":                                                            "set preheat.doors.tokenFile",
		"listen: :65010\n    tokenFile: /t":                                         "set preheat.doors.cert and key",
		"listen: :65010\n    tokenFile: /t\n    cert: /c":                           "set both",
		"listen: 127.0.0.1:1\n    username: u":                                      "set both",
		"listen: 127.0.0.1:1\n    header: X-Token":                                  "set both",
		"listen: 127.0.0.1:1\n    header: 'X Y'\n    headerFile: /f":                "is no name of a header",
		"listen: 127.0.0.1:1\n    tokenFile: /t\n    scope: none":                   "none is for rules",
		"listen: 127.0.0.1:1\n    tokenFile: /t\n    scope: everybody":              "is not one of one-seed",
		"rules: ['a.test/[']":                                                       "is no glob",
		"rules: ['a.test/**=everywhere']":                                           "is not one of one-seed",
		"rules: [{tags: [v1]}]":                                                     "images is missing",
		"rules: [{images: [a.test/b], platforms: [linux]}]":                         "write linux/amd64",
		"rules: [{images: [a.test/b], tag: v1}]":                                    `unknown key "tag"`,
		"listen: 127.0.0.1:1\n    header: X-Token\n    headerFile: /f":              "",
		"listen: 127.0.0.1:1\n    username: u\n    passwordFile: /f":                "",
		"listen: :1\n    tokenFile: /t\n    insecure: true":                         "",
		"listen: :1\n    tokenFile: /t\n    cert: /c\n    key: /k\n    rules: '**'": "",
	} {
		_, err := loadDoors(t, "preheat:\n  doors:\n    "+lines)
		if says == "" {
			assert.NoError(t, err, lines)
			continue
		}
		assert.ErrorContains(t, err, says, lines)
	}
}

func TestDoorRules(t *testing.T) {
	d, err := loadDoors(t, `
preheat:
  doors:
    rules:
      - a.test/**=one-seed
      - images: [b.test/*, c.test/x]
        tags: [v*]
        zones: [east, west]
        platforms: [linux/amd64]
      - images: [d.test/tmp]
        scope: none
`)
	require.NoError(t, err)
	list, scope := d.Policy()
	assert.Equal(t, preheat.AllSeeds, scope)
	assert.Equal(t, rules.Rules{
		{Images: []string{"a.test/**"}, Scope: preheat.OneSeed},
		{Images: []string{"b.test/*", "c.test/x"}, Tags: []string{"v*"}, Zones: []string{"east", "west"},
			Platforms: []string{"linux/amd64"}},
		{Images: []string{"d.test/tmp"}, Scope: rules.ScopeNone},
	}, list)
}
