package kind

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
)

// Versions of what the nodes run if they are built here. The images have the names and tags that kubeadm of this
// version wants.
const (
	kubernetesVersion = "v1.34.4"
	corednsTag        = "v1.12.1"
	etcdTag           = "3.6.5-0"
	pauseTag          = "3.10.1"
)

// imagePrefix and imageVersion make the names of Darter's own images.
const (
	imagePrefix  = "darter.test/darter-io"
	imageVersion = "v0.0.0-kind"
)

// built has the paths of what the test builds, all of it before the test enters a network without a way out.
type built struct {
	// Images are the archives of Darter's own images by program.
	Images map[string]string
	// Helm and Pause are programs.
	Helm, Pause string
	// The others are only built for nodes of our own. NodeRoot is a directory with a minimal Debian, NodeFiles one with
	// all that a node has beyond that.
	Runc, NodeRoot, NodeFiles string
}

// cacheDir holds what takes minutes to build.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "darter-kind")
	return dir, os.MkdirAll(dir, 0o755)
}

// command runs a program and returns what it printed; an error holds it too.
func command(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, tail(string(out)))
	}
	return string(out), nil
}

// tail returns the last lines of a text.
func tail(s string) string {
	const lines = 40
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// build builds all that the test needs into dir. With nodes, it builds what nodes of our own need.
func build(ctx context.Context, dir string, nodes bool) (b built, err error) {
	here, err := os.Getwd()
	if err != nil {
		return b, err
	}
	root := filepath.Join(here, "..", "..")
	bin := filepath.Join(dir, "bin")
	b = built{Helm: filepath.Join(bin, "helm"), Pause: filepath.Join(bin, "pause"), Runc: filepath.Join(bin, "runc")}
	for _, step := range [][]string{
		{root, "build", "-tags", "nomsgpack", "-ldflags", "-s -w", "-o",
			filepath.Join(bin, "linux_"+runtime.GOARCH) + "/", "./cmd/..."},
		{here, "build", "-mod=mod", "-ldflags", "-s -w", "-o", bin + "/", "./cmd/...", "helm.sh/helm/v4/cmd/helm"},
		{root, "build", "-tags", "nomsgpack", "-o", bin + "/", "./test/images"},
	} {
		if _, err := command(ctx, step[0], "go", step[1:]...); err != nil {
			return b, err
		}
	}
	if err := os.Setenv("SOURCE_DATE_EPOCH", "1700000000"); err != nil {
		return b, err
	}
	oci := filepath.Join(dir, "oci")
	if _, err := command(ctx, root, filepath.Join(bin, "images"), "-bin", bin, "-out", oci, "-arch", runtime.GOARCH,
		"-version", imageVersion, "-prefix", imagePrefix); err != nil {
		return b, err
	}
	b.Images = map[string]string{}
	for _, p := range []string{"supernode", "dfdaemon"} {
		b.Images[p] = filepath.Join(oci, fmt.Sprintf("%s_%s_linux_%s.tar", p, imageVersion, runtime.GOARCH))
	}
	if !nodes {
		return b, nil
	}
	if b.NodeRoot, err = nodeRoot(ctx); err != nil {
		return b, err
	}
	b.NodeFiles = filepath.Join(dir, "node")
	return b, nodeFiles(ctx, here, b)
}

// debianPackages are what a node needs besides a minimal Debian.
const debianPackages = "systemd,systemd-sysv,dbus,iproute2,iptables,nftables,kmod,procps,conntrack,socat,ethtool," +
	"util-linux,mount,ebtables,ca-certificates,runc,containernetworking-plugins"

// nodeRoot returns a directory with a minimal Debian, which it keeps for the next time.
func nodeRoot(ctx context.Context) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(debianPackages))
	dir := filepath.Join(cache, "debian-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	// The first mirror of this machine that has more than updates.
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	var site, release string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 2 && !strings.ContainsAny(f[1], "-/") && strings.Contains(f[0], "debian") {
			site, release = f[0], f[1]
			break
		}
	}
	if site == "" {
		return "", fmt.Errorf("apt-get names no Debian mirror:\n%s", out)
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if _, err := command(ctx, "", "debootstrap", "--variant=minbase", "--include="+debianPackages, release, part,
		site); err != nil {
		return "", err
	}
	for _, dirty := range []string{"var/cache/apt/archives", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(part, dirty)); err != nil {
			return "", err
		}
	}
	return dir, os.Rename(part, dir)
}

// kubernetes builds all programs of Kubernetes in one file, which it keeps for the next time.
func kubernetes(ctx context.Context, here string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(here, "components", "kubernetes")
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	file := filepath.Join(cache, "kubernetes-"+hex.EncodeToString(h.Sum(nil)[:6]))
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	const component = "k8s.io/component-base/version"
	ldflags := "-s -w -X k8s.io/client-go/pkg/version.gitVersion=" + kubernetesVersion
	minor := strings.Split(kubernetesVersion, ".")[1]
	for key, value := range map[string]string{"gitVersion": kubernetesVersion, "gitMajor": "1", "gitMinor": minor,
		"gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z"} {
		ldflags += fmt.Sprintf(" -X %s.%s=%s", component, key, value)
	}
	if _, err := command(ctx, dir, "go", "build", "-buildvcs=false", "-ldflags", ldflags, "-o", file+".part",
		"."); err != nil {
		return "", err
	}
	return file, os.Rename(file+".part", file)
}

// kubernetesNames are the programs in that file that a node has in its PATH.
var kubernetesNames = []string{"kubelet", "kubeadm", "kubectl"}

// nodeFiles writes what a node has beyond Debian to b.NodeFiles.
func nodeFiles(ctx context.Context, here string, b built) error {
	kube, err := kubernetes(ctx, here)
	if err != nil {
		return err
	}
	at := func(path string) string { return filepath.Join(b.NodeFiles, path) }
	for _, dir := range []string{"kind/manifests", "kind/images", "opt/cni", "etc/cni/net.d", "usr/local/bin",
		"usr/local/sbin", "usr/bin", "etc/kubernetes/manifests", "etc/systemd/system/multi-user.target.wants"} {
		if err := os.MkdirAll(at(dir), 0o755); err != nil {
			return err
		}
	}
	module, err := command(ctx, here, "go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind")
	if err != nil {
		return err
	}
	base := filepath.Join(strings.TrimSpace(module), "images", "base", "files")
	for _, args := range [][]string{
		{"cp", "-rT", "--no-preserve=mode", base, b.NodeFiles},
		{"chmod", "+x", at("usr/local/bin/entrypoint"), at("usr/local/bin/clean-install")},
		{"sh", "-c", `chmod +x "$0"/*.sh`, at("kind/bin")},
		{"cp", kube, at("usr/local/bin/kubernetes")},
		{"cp", b.Runc, at("usr/local/sbin/runc")},
	} {
		if _, err := command(ctx, here, args[0], args[1:]...); err != nil {
			return err
		}
	}
	const containerd = "github.com/containerd/containerd/v2"
	if _, err := command(ctx, filepath.Join(here, "..", "clients"), "go", "build", "-mod=mod", "-ldflags", "-s -w -X "+
		containerd+"/version.Version=v2.4.2", "-o", at("usr/local/bin")+"/", containerd+"/cmd/containerd",
		containerd+"/cmd/containerd-shim-runc-v2", containerd+"/cmd/ctr"); err != nil {
		return err
	}
	for path, text := range nodeTexts {
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(at(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at(path), []byte(text), mode); err != nil {
			return err
		}
	}
	links := map[string]string{
		"opt/cni/bin": "/usr/lib/cni",
		"etc/systemd/system/systemd-binfmt.service":            "/dev/null",
		"etc/systemd/system/containerd-fuse-overlayfs.service": "/dev/null",
	}
	for _, unit := range []string{"kubelet", "containerd", "undo-mount-hacks", "component-images"} {
		links["etc/systemd/system/multi-user.target.wants/"+unit+".service"] = "/etc/systemd/system/" + unit + ".service"
	}
	for _, name := range kubernetesNames {
		links["usr/bin/"+name] = "/usr/local/bin/kubernetes"
	}
	for path, target := range links {
		if err := os.RemoveAll(at(path)); err != nil {
			return err
		}
		if err := os.Symlink(target, at(path)); err != nil {
			return err
		}
	}
	return componentImages(ctx, b, kube, at("kind/images/components.tar"))
}

// nodeTexts are the small files of a node. containerd has its default for the directory of the mirrors.
var nodeTexts = map[string]string{
	"kind/version":               kubernetesVersion + "\n",
	"etc/containerd/config.toml": containerdConfig,
	"kind/manifests/default-storage.yaml": "apiVersion: storage.k8s.io/v1\nkind: StorageClass\n" +
		"metadata: {name: standard}\nprovisioner: rancher.io/local-path\n",
	// The kubelet sets these for the whole machine. It finds its values and writes nothing.
	"kind/bin/own-sysctls.sh": `#!/bin/sh
mkdir -p /run/own-sysctls
for kv in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	f=/run/own-sysctls/$(echo "${kv%=*}" | tr / _)
	[ -f "$f" ] && continue
	echo "${kv#*=}" > "$f"
	mount --bind "$f" "/proc/sys/${kv%=*}"
done
`,
	"etc/systemd/system/kubelet.service.d/20-own-sysctls.conf": "[Service]\nExecStartPre=/kind/bin/own-sysctls.sh\n",
	"etc/systemd/journald.conf.d/10-kmsg.conf":                 "[Journal]\nReadKMsg=no\n",
	// Nodes pull no image of Kubernetes.
	"etc/systemd/system/component-images.service": `[Unit]
Description=images of Kubernetes
After=containerd.service
Requires=containerd.service
Before=kubelet.service multi-user.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/bin/ctr --namespace k8s.io images import --local /kind/images/components.tar
`,
}

const containerdConfig = `version = 3
[plugins."io.containerd.cri.v1.images"]
  discard_unpacked_layers = true
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "registry.k8s.io/pause:` + pauseTag + `"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = true
`

// componentImages writes an archive of the images that kubeadm names. One layer has all programs of Kubernetes.
func componentImages(ctx context.Context, b built, kube, file string) error {
	// kube-proxy calls nft, which needs its libraries.
	out, err := command(ctx, "", "chroot", b.NodeRoot, "ldd", "/usr/sbin/nft")
	if err != nil {
		return err
	}
	files := map[string]string{"usr/sbin/nft": filepath.Join(b.NodeRoot, "usr/sbin/nft"),
		"usr/local/bin/kubernetes": kube}
	for _, f := range strings.Fields(out) {
		if strings.HasPrefix(f, "/") {
			real, err := filepath.EvalSymlinks(filepath.Join(b.NodeRoot, f))
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(f, "/")] = real
		}
	}
	names := map[string]string{}
	tags := map[string]string{"etcd": etcdTag, "coredns/coredns": corednsTag}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		tags[name] = kubernetesVersion
	}
	for name := range tags {
		names["usr/local/bin/"+filepath.Base(name)] = "/usr/local/bin/kubernetes"
	}
	programs, err := fileLayer(files, names, "tmp")
	if err != nil {
		return err
	}
	images := map[string]v1.Image{}
	for name, tag := range tags {
		img, err := program(empty.Image, "/usr/local/bin/"+filepath.Base(name), programs)
		if err != nil {
			return err
		}
		images["registry.k8s.io/"+name+":"+tag] = img
	}
	pause, err := fileLayer(map[string]string{"pause": b.Pause}, nil)
	if err != nil {
		return err
	}
	if images["registry.k8s.io/pause:"+pauseTag], err = program(empty.Image, "/pause", pause); err != nil {
		return err
	}
	return writeArchive(file, images)
}
