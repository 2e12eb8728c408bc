package charts

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

var rewrite = flag.Bool("rewrite", false, "write deploy/manifests in place of comparing it")

// The plain manifests are what the chart renders now.
func TestManifests(t *testing.T) {
	files, err := Manifests()
	require.NoError(t, err)
	for name, want := range files {
		at := filepath.Join(ManifestsDir, name)
		if *rewrite {
			require.NoError(t, os.WriteFile(at, []byte(want), 0o644))
		}
		got, err := os.ReadFile(at)
		require.NoError(t, err)
		if string(got) != want {
			assert.Equal(t, strings.Split(want, "\n"), strings.Split(string(got), "\n"),
				"%s does not come from the chart: run make manifests", at)
		}
		assert.NotContains(t, want, "helm.sh/hook", "kubectl would create a hook at once")
	}
}

// kubectl accepts the plain manifests, and they have the workloads of the chart.
func TestManifestsAreComplete(t *testing.T) {
	read := func(name string) Objects {
		text, err := os.ReadFile(filepath.Join(ManifestsDir, name))
		require.NoError(t, err)
		docs := map[string][]byte{}
		for _, doc := range strings.Split(string(text), "\n---\n")[1:] {
			docs[doc] = []byte(doc)
		}
		o, err := Decode(docs)
		require.NoError(t, err)
		return o
	}
	all, cleanup := read("darter.yaml"), read("cleanup.yaml")
	assert.Len(t, all.part("supernode"), 1)
	assert.Len(t, all.part("dfdaemon"), 1)
	assert.Empty(t, all.part("cleanup"))
	assert.Empty(t, objects[*corev1.Secret](all), "a secret in a repository is no secret")
	require.Contains(t, objects[*appsv1.DaemonSet](cleanup), "darter-cleanup")
	assert.Len(t, cleanup.All, 3)
	pod := cleanup.part("cleanup")[0].Template.Spec
	assert.Contains(t, objects[*corev1.ServiceAccount](cleanup), pod.ServiceAccountName)
	for _, v := range pod.Volumes {
		if v.ConfigMap != nil {
			assert.Contains(t, objects[*corev1.ConfigMap](cleanup), v.ConfigMap.Name)
		}
	}
}
