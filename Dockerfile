# syntax=docker/dockerfile:1

# The version of rust-toolchain.toml: another one would fetch that.
FROM rust:1.95.0-bookworm AS build
# For librdkafka: the C tools are in the image, OpenSSL and zlib are not.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libssl-dev zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked -p dashi --features tls \
    && cp target/dist/dashi /usr/local/bin/dashi

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin dashi \
    && install --directory --owner=dashi --group=dashi --mode=0700 /data
COPY --from=build /usr/local/bin/dashi /usr/local/bin/dashi
USER dashi
# The defaults `sqlite:data/log.db` and `sqlite:data/store.db` lie in the volume from here.
WORKDIR /
VOLUME /data
EXPOSE 8484
# SIGTERM, which `docker stop` sends, drains.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["dashi", "health", "--url", "http://127.0.0.1:8484"]
ENTRYPOINT ["dashi"]
CMD ["serve", "--listen", "0.0.0.0:8484"]
