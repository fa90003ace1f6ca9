# The image of Parallax: daemon, command line and CSI driver, with the filesystem tools that they start.
#
#   docker build -t parallax .
#
# `cargo xtask cluster up` makes the same image without a registry: the base from Debian's packages, the programs
# from cargo on the machine.

# Where those two bases cannot be pulled, any of the same kind will do: RUST_IMAGE has cargo on its PATH, both have apt.

ARG DEBIAN=bookworm
ARG RUST=1.95
ARG RUST_IMAGE=docker.io/library/rust:${RUST}-slim-${DEBIAN}
ARG DEBIAN_IMAGE=docker.io/library/debian:${DEBIAN}-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake gcc libc6-dev make \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin parallaxd --bin parallax --bin parallax-csi \
    && mkdir /out \
    && for program in parallaxd parallax parallax-csi; do \
         strip --strip-debug -o /out/$program target/release/$program; \
       done

FROM ${DEBIAN_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates e2fsprogs mount util-linux xfsprogs \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
LABEL org.opencontainers.image.title="Parallax" \
      org.opencontainers.image.licenses="Apache-2.0"
