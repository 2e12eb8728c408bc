// Package charts checks the Helm chart deploy/helm/darter without a cluster: it renders the chart with Helm's own
// library and decodes each document with Kubernetes' own types.
//
// A document with an unknown field, a setting that the programs refuse, or a broken promise of the chart fails a test.
// Start at [Release.Render].
package charts

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// Dir is the chart's directory, as seen from this package.
const Dir = "../../deploy/helm/darter"

// Values parses values as a file for "helm --values" has them.
func Values(text string) (map[string]any, error) {
	var values map[string]any
	err := yaml.UnmarshalStrict([]byte(text), &values)
	if values == nil {
		values = map[string]any{}
	}
	return values, err
}

// Release is one installation of the chart.
type Release struct {
	Name, Namespace string
	// Values are a file for "helm --values".
	Values string
	// Upgrade renders an upgrade of the release in place of its installation.
	Upgrade bool
	// Cluster answers the lookups of templates; nil is "helm template", which finds nothing.
	Cluster engine.ClientProvider
}

// kubeVersion is the cluster's, for templates that ask.
const kubeVersion = "v1.35.0"

// files returns what the templates make of a release, by file.
func (r Release) files() (map[string]string, error) {
	given, err := Values(r.Values)
	if err != nil {
		return nil, err
	}
	chart, err := loader.Load(Dir)
	if err != nil {
		return nil, err
	}
	caps := common.DefaultCapabilities.Copy()
	version, err := common.ParseKubeVersion(kubeVersion)
	if err != nil {
		return nil, err
	}
	caps.KubeVersion = *version
	all, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Name: r.Name, Namespace: r.Namespace,
		IsInstall: !r.Upgrade, IsUpgrade: r.Upgrade, Revision: 1}, caps)
	if err != nil {
		return nil, err
	}
	render := func() (map[string]string, error) { return engine.Render(chart, all) }
	if r.Cluster != nil {
		render = func() (map[string]string, error) { return engine.RenderWithClientProvider(chart, all, r.Cluster) }
	}
	files, err := render()
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if strings.Contains(text, "<no value>") || strings.Contains(text, "<nil>") {
			return nil, fmt.Errorf("%s uses a value that does not exist:\n%s", name, text)
		}
	}
	return files, nil
}

// Render renders the chart. It returns the documents by file, with a number after the name: "secret.yaml 1".
func (r Release) Render() (map[string][]byte, error) {
	files, err := r.files()
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for name, text := range files {
		name = path.Base(name)
		if name == "NOTES.txt" {
			out[name] = []byte(text)
			continue
		}
		for i, doc := range strings.Split("\n"+text, "\n---") {
			var content any
			if err := yaml.Unmarshal([]byte(doc), &content); err != nil {
				return nil, fmt.Errorf("%s: %w in:\n%s", name, err, doc)
			}
			if content != nil {
				out[fmt.Sprintf("%s %d", name, i)] = []byte(doc)
			}
		}
	}
	return out, nil
}

// Objects are the decoded documents of a release.
type Objects struct {
	// Notes are what Helm prints after an installation.
	Notes string
	// All has every object by its file.
	All map[string]runtime.Object
	// Pods are the workloads.
	Pods []Workload
}

// Workload is an object that makes pods.
type Workload struct {
	Kind string
	metav1.ObjectMeta
	Selector map[string]string
	Template corev1.PodTemplateSpec
	// Claims are the volumes that a StatefulSet adds.
	Claims []corev1.PersistentVolumeClaim
}

// Decode decodes documents strictly: a field that is unknown, or there twice, is an error.
func Decode(docs map[string][]byte) (o Objects, err error) {
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, monitoring.AddToScheme} {
		if err := add(known); err != nil {
			return o, err
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, known, known,
		json.SerializerOptions{Yaml: true, Strict: true})
	o.All = map[string]runtime.Object{}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		doc := docs[name]
		if name == "NOTES.txt" {
			o.Notes = string(doc)
			continue
		}
		object, _, err := strict.Decode(bytes.TrimSpace(doc), nil, nil)
		if err != nil {
			return o, fmt.Errorf("%s: %w in:\n%s", name, err, doc)
		}
		o.All[name] = object
		switch w := object.(type) {
		case *appsv1.DaemonSet:
			o.Pods = append(o.Pods, Workload{"DaemonSet", w.ObjectMeta, w.Spec.Selector.MatchLabels, w.Spec.Template, nil})
		case *appsv1.StatefulSet:
			o.Pods = append(o.Pods, Workload{"StatefulSet", w.ObjectMeta, w.Spec.Selector.MatchLabels, w.Spec.Template,
				w.Spec.VolumeClaimTemplates})
		case *batchv1.Job:
			o.Pods = append(o.Pods, Workload{"Job", w.ObjectMeta, nil, w.Spec.Template, nil})
		}
	}
	return o, nil
}

// objects returns the objects of one type by name.
func objects[T runtime.Object](o Objects) map[string]T {
	out := map[string]T{}
	for _, one := range o.All {
		if typed, ok := one.(T); ok {
			out[one.(metav1.Object).GetName()] = typed
		}
	}
	return out
}

// part returns the workloads of one component.
func (o Objects) part(component string) (list []Workload) {
	for _, w := range o.Pods {
		if w.Template.Labels["app.kubernetes.io/component"] == component {
			list = append(list, w)
		}
	}
	return list
}
