# The entry points. Each target is one script or one command; docs/development.md describes the test tiers.
export CARGO_INCREMENTAL := 0

.DEFAULT_GOAL := help
.PHONY: help setup test test-lint test-unit test-sim sim mutations fuzz test-process histories test-e2e test-cgroup2 bench-convergence \
  bench-scale \
  demo image crds clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

setup: ## install and build what building and testing need (other targets run it if they need it)
	scripts/setup

test: setup ## run every test, on a throwaway Kubernetes or the one KUBECONFIG names
	scripts/test

test-lint: setup ## formatting, clippy, scripts/house, licences and advisories, the chart, the scripts
	scripts/test lint

test-unit: setup ## tests of single modules
	scripts/test unit

test-sim: setup ## thousands of simulated clusters; SEEDS=n sets how many
	scripts/test sim

sim: ## simulated clusters on all cores, with progress; SEEDS=n sets how many, FROM=s the first seed; MINUTES=n simulates membership
	SEEDS=$${SEEDS:-1000000} cargo test --release --locked -p kvasir-replica --test simulation -- --nocapture
	MINUTES=$${MINUTES:-10000} cargo test --release --locked -p kvasir-membership --test simulation hours_of_loss -- --nocapture

mutations: ## run the tests of the replica with each planted bug, and check that one of them fails
	scripts/mutations

fuzz: ## every decoder under libFuzzer, MINUTES=n each (10); FUZZ=name chooses
	scripts/fuzz

test-process: setup ## real node processes, on loopback and in network namespaces
	scripts/test process

histories: setup ## five real nodes under faults, with their histories checked; MINUTES=n (5) sets how long, SEED=s the faults
	MINUTES=$${MINUTES:-5} cargo test --locked -p kvasir-node --test history five_nodes -- --nocapture

test-e2e: setup ## e2e tests of the whole product on a real Kubernetes
	scripts/test e2e

test-cgroup2: ## the throwaway Kubernetes on a Debian with systemd and cgroup v2, in an emulated machine; not part of test
	scripts/setup demo
	scripts/image
	scripts/test-cgroup2

bench-convergence: ## a write to all of 3 to 100 simulated replicas: time and bytes, into docs/benchmarks.md
	cargo run --release --locked -p kvasir-bench -- --write docs convergence

bench-scale: setup ## real nodes with a million keys: traffic, join, repair, load, memory, into docs/benchmarks.md
	scripts/bench-scale

demo: ## show Kvasir on a real Kubernetes
	$(if $(KUBECONFIG),,scripts/setup demo)
	scripts/demo

image: ## the container images, as dist/*.tar
	scripts/setup image
	scripts/image

crds: ## write the CRD's YAML into the chart
	mkdir -p target
	cargo run --quiet --package kvasir-crds --bin crdgen > target/crd.yaml
	mv target/crd.yaml charts/kvasir/templates/crd.yaml

clean: ## remove build output and the throwaway clusters
	-e2e/cluster/down.sh
	-KV_PREFIX=kvdemo e2e/cluster/down.sh
	cargo clean
	rm -rf dist
