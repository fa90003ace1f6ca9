# The image of Parallax: daemon, command line and CSI driver, with the filesystem tools that they start.
#
#   docker build -t parallax .
#
# `cargo xtask cluster up` makes the same image without a registry: the base from Debian's packages, the programs
# from cargo on the machine.

ARG DEBIAN=bookworm
ARG RUST=1.95

FROM docker.io/library/rust:${RUST}-slim-${DEBIAN} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake gcc libc6-dev make \
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

FROM docker.io/library/debian:${DEBIAN}-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates e2fsprogs mount util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
LABEL org.opencontainers.image.title="Parallax" \
      org.opencontainers.image.licenses="Apache-2.0"
