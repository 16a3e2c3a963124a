# kvasir.dev/kvasir: node, operator and kvctl, static, without a base image. scripts/image makes the same without an engine.
#
#   docker build -t kvasir.dev/kvasir:0.1.0 .

FROM rust:1.95.0-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends musl-tools \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Paths are remapped as in scripts/image, so that the programs do not contain them.
RUN set -eu; \
    target="$(uname -m)-unknown-linux-musl"; \
    name="$(echo "$target" | tr - _)"; \
    rustup target add "$target"; \
    export CARGO_INCREMENTAL=0 "CC_$name=musl-gcc"; \
    export "CARGO_TARGET_$(echo "$name" | tr a-z A-Z)_RUSTFLAGS=--remap-path-prefix=$CARGO_HOME=/cargo --remap-path-prefix=$PWD=/kvasir"; \
    cargo build --release --locked --target "$target" -p kvasir-node -p kvasir-operator -p kvasir-cli --bins; \
    mkdir /out; \
    cd "target/$target/release"; \
    cp kvasir-node kvasir-operator kvctl /out/

FROM scratch
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="kvasir" \
      org.opencontainers.image.description="A replicated in-memory key/value store for Kubernetes: node, operator and kvctl" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.url="https://kvasir.dev"
COPY --from=build /out/ /
# Freed memory returns to the kernel after 10 ms, not after a second and the next allocation.
ENV PATH=/
ENV MIMALLOC_PURGE_DELAY=10
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/kvasir-node"]
