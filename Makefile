# Darter's build. `make` alone lists the targets.
#
# Binaries are static (no cgo) and reproducible (no paths of the building machine inside).
# nomsgpack leaves out of gin a codec that nothing here speaks: some 4 MB a binary.

GO     ?= go
# GOTEST runs tests. gotestsum lists the skipped tests with their reasons at the end, which go test
# hides; .ci/run replaces it with a gotestsum that also keeps all events.
GOTEST ?= $(shell $(GO) tool -n gotestsum) --format $(FORMAT) --
FORMAT := standard-quiet
# A -timeout is for one package and names the test that hangs: some six times what the slowest
# package takes alone on two cores, since a busy machine is no fault.
TAGS   := nomsgpack

# The version and commit that --version and the metric darter_build_info show. A clone without tags
# counts its commits: v0.0.0-2310-g0123456. Outside a clone both are empty, and the programs show what
# the Go toolchain recorded.
ifneq ($(wildcard .git),)
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || \
	{ id=$$(git describe --always --dirty 2>/dev/null) && echo "v0.0.0-$$(git rev-list --count HEAD)-g$$id"; })
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
endif
STAMP   := github.com/darter-io/darter/pkg/version
LDFLAGS  = -s -w $(if $(VERSION),-X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT))
# BUILD builds the programs. The stamp is ours: git need not trust the directory, and -trimpath drops its name.
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags $(TAGS) -ldflags '$(LDFLAGS)'

# Tools that no program needs have a module of their own, tools/go.mod, which pins them. An SBOM holds the hash of its
# tool, so the tool is built alike everywhere.
TOOL    := CGO_ENABLED=0 GOFLAGS=-trimpath $(GO) -C tools tool -n

TESTED  = $(shell $(GO) list -tags $(TAGS) ./... | grep -v /test/e2e)
# What plays in virtual time.
BUBBLES = $(shell $(GO) list -tags $(TAGS) -f '{{.ImportPath}} {{.Imports}} {{.TestImports}} {{.XTestImports}}' ./... \
	| awk '/testing\/synctest/ {print $$1}')

# test/clients is a module of its own, whose go.mod follows the root's by -mod=mod; without the
# tag one library needs GPGME's headers.
CLIENT_FLAGS := -tags $(TAGS),containers_image_openpgp

# The modules of their own that make lint checks. The modules of test/kind take minutes to compile: after a change there,
# run make lint LINTED=kind.
LINTED   := charts clients
GOLANGCI = $$golangci run --allow-parallel-runners --timeout 30m

.DEFAULT_GOAL := help
.PHONY: help build test demo bench bench-quick plot lint race race-real race-virtual race-clients clients charts manifests e2e test-kind clients-alone release images clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build supernode, dfdaemon and dfget into bin/
	$(BUILD) -o bin/ ./cmd/...

test: ## run the tests; what needs root or a Debian package says so and is skipped
	@$(GOTEST) -tags $(TAGS) -timeout 20m $(TESTED)

demo: ## pull an image through five nodes on this machine and count what the registry sent
	@echo '• compiling the demo (the first run takes minutes, see README.md; later ones take seconds)'
	@CGO_ENABLED=0 $(GO) run -trimpath -tags $(TAGS) ./test/demo -ldflags '$(LDFLAGS)'

bench: ## measure how close swarms come to what links allow, and what they cost: out/bench.json (half an hour)
	$(GO) test -tags $(TAGS) -count 1 -timeout 3h -v ./test/bench -args -size full -out $(CURDIR)/out/bench.json
	$(GO) run -tags $(TAGS) ./test/bench/machine
	$(GO) run -tags $(TAGS) ./test/bench/promised

plot: ## draw what bench measured into docs/
	$(GO) run -tags $(TAGS) ./test/bench/plot

bench-quick: ## the part of bench that takes a minute or two
	$(GO) test -tags $(TAGS) -count 1 -timeout 30m -v ./test/bench -args -size quick -out $(CURDIR)/out/bench.json
	$(GO) run -tags $(TAGS) ./test/bench/machine -quick
	$(GO) run -tags $(TAGS) ./test/bench/promised

lint: ## gofmt, and golangci-lint by .golangci.yml, which it builds first (some minutes the first time)
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	golangci=$$($(TOOL) golangci-lint) && $(GOLANGCI) && for module in $(LINTED); do (cd test/$$module && \
	CGO_ENABLED=0 $(GOLANGCI) --config ../../.golangci.yml --modules-download-mode mod --build-tags $(TAGS),containers_image_openpgp) || exit 1; done

race: race-real race-virtual race-clients ## run the tests under the race detector (needs a C compiler; part of it needs what e2e needs)

race-real:
	@CGO_ENABLED=1 $(GOTEST) -race -tags $(TAGS) -timeout 30m $(filter-out $(BUBBLES),$(TESTED)) ./test/e2e

# Under the race detector Go's runtime (1.26) may run the timers of one bubble on two threads with one race context and
# crash, so these tests get one processor.
race-virtual:
	@CGO_ENABLED=1 $(GOTEST) -race -cpu 1 -tags $(TAGS) -timeout 30m $(filter $(BUBBLES),$(TESTED))

# One of the clients' libraries brings a database in C, which is compiled quickly and not well.
race-clients:
	@cd test/clients && CGO_ENABLED=1 CGO_CFLAGS=-O0 $(GOTEST) -race -mod=mod $(CLIENT_FLAGS) -count 1 -timeout 20m -parallel 12 .

clients e2e: FORMAT := standard-verbose
clients: ## pull with the libraries of containerd, Docker, Podman and others, with faults: out/clients.json
	@cd test/clients && CGO_ENABLED=0 $(GOTEST) -mod=mod $(CLIENT_FLAGS) -count 1 -timeout 20m -parallel 12 . -args -out $(CURDIR)/out/clients.json

# test/charts is a module of its own, too. kube-score is a tool of tools/go.mod.
CHARTS = score=$$($(TOOL) kube-score) && cd test/charts && CGO_ENABLED=0 $(GOTEST) -mod=mod -tags $(TAGS) -count 1 -timeout 10m

charts: ## check the Helm chart without a cluster: lint, rendering, schema, Kubernetes' types, kube-score, alerts, manifests
	@$(CHARTS) . -args -kube-score $$score

manifests: ## render the Helm chart into deploy/manifests
	@$(CHARTS) -run 'TestManifests$$' . -args -rewrite

e2e: ## pull with real containerd, Docker, Podman and others in network namespaces (needs root and their packages)
	@$(GOTEST) -tags $(TAGS) -count 1 -timeout 40m ./test/e2e/... -args -out $(CURDIR)/out/clients.json

test-kind: ## install the Helm chart in a kind cluster and count what the registry sends: out/kind.json (not in CI)
	cd test/kind && CGO_ENABLED=0 $(GO) test -mod=mod -tags $(TAGS) -count 1 -timeout 90m -v . -args $(KIND) \
		-out $(CURDIR)/out/kind.json -logs $(CURDIR)/out/kind-logs

clients-alone: ## measure what clients do when a mirror misbehaves, without Darter (15 minutes; needs what e2e needs)
	$(GO) test -tags $(TAGS) -count 1 -timeout 30m -v -run WhatTools ./test/e2e -args -alone
	cd test/clients && CGO_ENABLED=0 $(GO) test -mod=mod $(CLIENT_FLAGS) -count 1 -timeout 10m -parallel 8 -v -run WhatLibraries . -args -alone

release: ## static programs for linux amd64 and arm64, SBOMs and checksums: out/release
	@if [ -z "$(VERSION)" ]; then echo "make release needs a git clone, or VERSION=v1.2.3" >&2; exit 1; fi
	rm -rf out/release
	@set -e; sbom=$$($(TOOL) cyclonedx-gomod); \
	for arch in amd64 arm64; do \
		name=darter_$(VERSION)_linux_$$arch; dir=out/release/$$name; mkdir -p $$dir; \
		echo "building $$name"; \
		GOOS=linux GOARCH=$$arch $(BUILD) -o $$dir/ ./cmd/...; \
		cp LICENSE README.md CHANGELOG.md $$dir/; \
		for program in $$dir/supernode $$dir/dfdaemon $$dir/dfget; do \
			$$sbom bin -json -noserial -notimestamp -version $(VERSION) -output $$program.cdx.json $$program; \
		done; \
		tar --sort=name --mtime="@$$(git log -1 --format=%ct 2>/dev/null || echo 0)" --owner=0 --group=0 --numeric-owner \
			--mode=u=rwX,go=rX -C out/release -cf - $$name | gzip -9n > $$dir.tar.gz; \
		rm -r $$dir; \
	done; \
	cd out/release && sha256sum *.tar.gz > SHA256SUMS && cat SHA256SUMS

images: ## container images of supernode and dfdaemon for amd64 and arm64, without an engine: out/images
	@if [ -z "$(VERSION)" ]; then echo "make images needs a git clone, or VERSION=v1.2.3" >&2; exit 1; fi
	rm -rf out/images
	@set -e; sbom=$$($(TOOL) cyclonedx-gomod); \
	for arch in amd64 arm64; do \
		dir=out/images/bin/linux_$$arch; echo "building $$dir"; \
		GOOS=linux GOARCH=$$arch $(BUILD) -o $$dir/ ./cmd/...; \
		for program in supernode dfdaemon dfget; do \
			$$sbom bin -json -noserial -notimestamp -version $(VERSION) \
				-output out/images/$${program}_linux_$$arch.cdx.json $$dir/$$program; \
		done; \
	done
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} CGO_ENABLED=0 \
		$(GO) run -trimpath -tags $(TAGS) ./test/images -version $(VERSION) -commit '$(COMMIT)' $(IMAGES)

clean: ## remove what the targets above wrote
	rm -rf bin out
