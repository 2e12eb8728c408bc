package preheat_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

func TestTarget(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for name, want := range map[string]preheat.Target{
		"quay.io/app/web:1.2":           {Upstream: "quay.io", Repository: "app/web", Tag: "1.2"},
		"registry.test:5000/web":        {Upstream: "registry.test:5000", Repository: "web", Tag: "latest"},
		"oci://quay.io/charts/web:0.1":  {Upstream: "quay.io", Repository: "charts/web", Tag: "0.1"},
		"alpine":                        {Upstream: "docker.io", Repository: "library/alpine", Tag: "latest"},
		"quay.io/web@" + digest:         {Upstream: "quay.io", Repository: "web", Digest: task.ID(digest)},
		"QUAY.io/app/web:v1@" + digest:  {Upstream: "quay.io", Repository: "app/web", Tag: "v1", Digest: task.ID(digest)},
		"localhost/web:1":               {Upstream: "localhost", Repository: "web", Tag: "1"},
		"index.docker.io/library/web:x": {Upstream: "docker.io", Repository: "library/web", Tag: "x"},
	} {
		got, err := preheat.Spec{Kind: preheat.Image, Reference: name}.Target()
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	for _, bad := range []string{
		"", "quay.io/", "quay.io/Web", "quay.io/web:", "quay.io/web:a b", "quay.io/web@sha256:0a", "http://quay.io/web",
		strings.Repeat("a", 2000),
	} {
		_, err := preheat.Spec{Kind: preheat.Image, Reference: bad}.Target()
		assert.ErrorIs(t, err, preheat.ErrInvalid, "%q", bad)
	}
}

func TestValidate(t *testing.T) {
	good := preheat.Spec{Kind: preheat.Image, Reference: "quay.io/web:1", Waves: []float64{5, 25, 100}, Min: 99,
		Platforms: []string{"linux/amd64", "linux/arm64/v8"}}
	require.NoError(t, good.Validate())
	require.NoError(t, preheat.Spec{Kind: preheat.File, URL: "https://files.test/a"}.Validate())
	large := secret.String(strings.Repeat("x", 20000))
	for name, change := range map[string]func(s *preheat.Spec){
		"no kind":             func(s *preheat.Spec) { s.Kind = "" },
		"both":                func(s *preheat.Spec) { s.URL = "https://a.test/b" },
		"file without url":    func(s *preheat.Spec) { *s = preheat.Spec{Kind: preheat.File} },
		"file by ftp":         func(s *preheat.Spec) { *s = preheat.Spec{Kind: preheat.File, URL: "ftp://a.test/b"} },
		"waves fall":          func(s *preheat.Spec) { s.Waves = []float64{25, 5, 100} },
		"waves end early":     func(s *preheat.Spec) { s.Waves = []float64{5, 25} },
		"wave beyond 100":     func(s *preheat.Spec) { s.Waves = []float64{5, 101} },
		"min beyond 100":      func(s *preheat.Spec) { s.Min = 101 },
		"platform":            func(s *preheat.Spec) { s.Platforms = []string{"amd64"} },
		"platform with hole":  func(s *preheat.Spec) { s.Platforms = []string{"linux/"} },
		"too many zones":      func(s *preheat.Spec) { s.Scope.Zones = make([]string, preheat.ListMax+1) },
		"long zone":           func(s *preheat.Spec) { s.Scope.Zones = []string{strings.Repeat("z", 300)} },
		"count and percent":   func(s *preheat.Spec) { s.Scope.Count, s.Scope.Percent = 1, 1 },
		"scope":               func(s *preheat.Spec) { s.Scope.Kind = "everyone" },
		"webhook":             func(s *preheat.Spec) { s.Webhook = "file:///etc/passwd" },
		"headers of a volume": func(s *preheat.Spec) { s.Headers = map[string]secret.String{"a": large} },
	} {
		bad := good
		change(&bad)
		assert.ErrorIs(t, bad.Validate(), preheat.ErrInvalid, name)
	}
}

// TestSpecHidesCredentials: neither JSON nor a log of a job holds its headers.
func TestSpecHidesCredentials(t *testing.T) {
	job := preheat.Job{Spec: preheat.Spec{Kind: preheat.File, URL: "https://u:hunter2@a.test/f?sig=hunter2",
		Headers: map[string]secret.String{"Authorization": "hunter2"}}}
	assert.Equal(t, "https://a.test/f", job.Spec.Name())
	job.Spec.URL = ""
	b, err := json.Marshal(job)
	require.NoError(t, err)
	assert.NotContains(t, string(b)+fmt.Sprintf("%v %+v %#v", job, job, job), "hunter2")
}
