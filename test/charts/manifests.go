package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
)

// ManifestsDir holds the plain manifests, as seen from this package, and the values from which they are rendered.
const ManifestsDir = "../../deploy/manifests"

// hookAnnotations are the annotations of an object that only Helm reads.
var hookAnnotations = regexp.MustCompile(`(?m)^  annotations:\n(    helm\.sh/hook.*\n)+`)

// Manifests renders the plain manifests, for clusters without Helm, by file name. The hooks are a file of their own,
// without the Job: kubectl waits for a DaemonSet by itself.
func Manifests() (map[string]string, error) {
	values, err := os.ReadFile(filepath.Join(ManifestsDir, "values.yaml"))
	if err != nil {
		return nil, err
	}
	files, err := Release{Name: "darter", Namespace: "darter", Values: string(values)}.files()
	if err != nil {
		return nil, err
	}
	for name := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	hooks, objects, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	const head = "# make manifests renders this file from %s with values.yaml of this directory. Do not edit it.\n"
	var all, cleanup strings.Builder
	for _, b := range []*strings.Builder{&all, &cleanup} {
		fmt.Fprintf(b, head, "deploy/helm/darter")
	}
	add := func(to *strings.Builder, text string) {
		fmt.Fprintf(to, "---\n%s\n", strings.TrimSpace(text))
	}
	for _, o := range objects {
		add(&all, o.Content)
	}
	for _, h := range hooks {
		switch h.Kind {
		case "ServiceAccount", "ConfigMap", "DaemonSet":
			add(&cleanup, hookAnnotations.ReplaceAllString(h.Manifest, ""))
		}
	}
	return map[string]string{"darter.yaml": all.String(), "cleanup.yaml": cleanup.String()}, nil
}
