package charts

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var kubeScore = flag.String("kube-score", "", "the program kube-score, which make charts builds")

// accepted are findings of kube-score with which the chart lives, by component and check, each with the reason. CPU
// limits are left out by a flag: a program that is stopped many times a second counts as lost, and the schema refuses
// such a limit.
var accepted = map[string]string{
	"supernode container-image-pull-policy":    "a tag or digest of a release never changes; image.pullPolicy is a value",
	"dfdaemon container-image-pull-policy":     "the same; and a node must start its mirror while the registry is away",
	"cleanup container-image-pull-policy":      "the same; the node has the image of dfdaemon",
	"cleanup-wait container-image-pull-policy": "the same",

	"supernode container-ephemeral-storage-request-and-limit":    "its emptyDir has a size limit, its root is read-only",
	"dfdaemon container-ephemeral-storage-request-and-limit":     "its cache is a directory of the node with a quota",
	"cleanup container-ephemeral-storage-request-and-limit":      "its root is read-only, and it writes to the node",
	"cleanup-wait container-ephemeral-storage-request-and-limit": "its root is read-only, and it has no volume",

	"dfdaemon container-security-context-user-group-id": "the directories of the node belong to root",
	"cleanup container-security-context-user-group-id":  "the directories of the node belong to root",

	"supernode pod-networkpolicy":    "it has a policy for ingress; egress goes to registries at any address",
	"dfdaemon pod-networkpolicy":     "no policy selects pods on the network of the node",
	"cleanup pod-networkpolicy":      "it opens no port and no connection",
	"cleanup-wait pod-networkpolicy": "it opens no port, and lives for minutes after the release",

	"supernode statefulset-has-host-podantiaffinity": "topologySpreadConstraints spread the pods over hosts and zones",
}

// kube-score finds nothing but what the list above accepts, and finds all of that.
func TestKubeScore(t *testing.T) {
	if *kubeScore == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("no -kube-score: run make charts")
		}
		t.Skip("no -kube-score: run make charts")
	}
	found := map[string]bool{}
	for _, name := range []string{"defaults", "everything on", "volumes that outlive pods", "zones by name", "Docker"} {
		docs, err := render("darter", sets[name])
		require.NoError(t, err)
		var all bytes.Buffer
		for _, file := range slices.Sorted(maps.Keys(docs)) {
			if file != "NOTES.txt" {
				all.WriteString("\n---\n")
				all.Write(docs[file])
			}
		}
		cmd := exec.CommandContext(t.Context(), *kubeScore, "score", "--output-format", "json",
			"--kubernetes-version", "v1.28", "--ignore-container-cpu-limit", "-")
		cmd.Stdin = &all
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		_ = cmd.Run() // ends with 1 if it finds something
		var scored []scored
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &scored), "%s%s", &stdout, &stderr)
		require.NotEmpty(t, scored)
		for _, object := range scored {
			for _, c := range object.Checks {
				if c.Skipped || c.Grade >= gradeOK {
					continue
				}
				key := object.Meta.Labels["app.kubernetes.io/component"] + " " + c.Check.ID
				found[key] = true
				if accepted[key] == "" {
					t.Errorf("%s: %s %s: %s: %+v", name, object.Type.Kind, object.Meta.Name, c.Check.ID, c.Comments)
				}
			}
		}
	}
	for key := range accepted {
		assert.True(t, found[key], "kube-score does not find this any more: %s", key)
	}
}

// gradeOK is kube-score's grade "almost OK": it fails no run of kube-score itself.
const gradeOK = 7

// scored is one object in the output of kube-score.
type scored struct {
	Type struct {
		Kind string `json:"kind"`
	} `json:"type_meta"`
	Meta struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"object_meta"`
	Checks []struct {
		Check struct {
			ID string `json:"id"`
		} `json:"check"`
		Grade    int  `json:"grade"`
		Skipped  bool `json:"skipped"`
		Comments []struct {
			Path    string `json:"path"`
			Summary string `json:"summary"`
		} `json:"comments"`
	} `json:"checks"`
}
