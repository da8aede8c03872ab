# The services' images: docker build --target patient-service . (or billing-service, analytics-service, auth-service,
# console).
#
# The base images are named here alone. A mirror takes the place of a registry: --build-arg DOCKER_HUB=mirror.example.org
ARG DOCKER_HUB=docker.io
ARG GCR=gcr.io
ARG RUST_IMAGE=${DOCKER_HUB}/library/rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=${GCR}/distroless/static-debian12:nonroot

FROM ${RUST_IMAGE} AS rust
WORKDIR /src
# Static binaries need no libc in their image, which leaves nothing there but them, and no dynamic loader to attack.
# With a target of its own, the flag does not reach build scripts and procedural macros.
ENV CARGO_BUILD_TARGET=host-tuple RUSTFLAGS="-C target-feature=+crt-static" CARGO_TERM_COLOR=never
ENV SERVICES="-p patient-service -p billing-service -p analytics-service -p auth-service -p console"

# What decides about the dependencies: the manifests and the lock file, with an empty root for every crate of ours.
FROM rust AS manifests
COPY . .
RUN cargo metadata --offline --no-deps --format-version 1 >/tmp/metadata \
    && grep -o '"src_path":"[^"]*"' /tmp/metadata | cut -d '"' -f 4 >/tmp/roots \
    && find . -type f ! -name Cargo.toml ! -name Cargo.lock -delete && find . -type d -empty -delete \
    && while read -r root; do mkdir -p "$(dirname "$root")" && echo 'fn main() {}' >"$root"; done </tmp/roots

# As long as those stay the same, this layer does: copies between stages are compared by content.
FROM rust AS dependencies
COPY --from=manifests /src .
RUN cargo build --release --locked $SERVICES

FROM dependencies AS build
COPY . .
ARG GIT_REVISION=unknown
# Cargo compares times, and our code may be older than its empty stand-in.
RUN find apps libs tools -name '*.rs' -exec touch {} + \
    && cargo build --release --locked $SERVICES \
    && mkdir -p /out/state && cp target/*/release/*-service target/*/release/console /out/

FROM ${RUNTIME_IMAGE} AS service
LABEL org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
# A container's loopback is of no use to others.
ENV SERVER_ADDRESS=0.0.0.0 LOG_FORMAT=json
USER 65532:65532

FROM service AS patient-service
LABEL org.opencontainers.image.title="patient-service" \
      org.opencontainers.image.description="Keeps the patients: HTTP, PostgreSQL, an outbox to Kafka"
COPY --from=build /out/patient-service /usr/local/bin/
EXPOSE 4000
ENTRYPOINT ["/usr/local/bin/patient-service"]

FROM service AS billing-service
LABEL org.opencontainers.image.title="billing-service" \
      org.opencontainers.image.description="Keeps the billing accounts and their ledgers: gRPC, PostgreSQL"
COPY --from=build /out/billing-service /usr/local/bin/
EXPOSE 4001 9001
ENTRYPOINT ["/usr/local/bin/billing-service"]

FROM service AS analytics-service
LABEL org.opencontainers.image.title="analytics-service" \
      org.opencontainers.image.description="Counts the patient events of Kafka, each once"
COPY --from=build /out/analytics-service /usr/local/bin/
# A new named volume takes its owner from here.
COPY --from=build --chown=65532:65532 /out/state /var/lib/analytics-service
ENV STATE_FILE=/var/lib/analytics-service/analytics.sqlite
EXPOSE 4002
ENTRYPOINT ["/usr/local/bin/analytics-service"]

FROM service AS auth-service
LABEL org.opencontainers.image.title="auth-service" \
      org.opencontainers.image.description="Issues tokens to the users of a file"
COPY --from=build /out/auth-service /usr/local/bin/
# A new named volume takes its owner from here.
COPY --from=build --chown=65532:65532 /out/state /var/lib/auth-service
ENV SIGNING_KEY_FILE=/var/lib/auth-service/signing-key.pk8 USERS_FILE=/etc/auth-service/users.json
EXPOSE 4005
ENTRYPOINT ["/usr/local/bin/auth-service"]

FROM service AS console
LABEL org.opencontainers.image.title="console" \
      org.opencontainers.image.description="Shows the system at work: journeys of patients, the map, faults"
COPY --from=build /out/console /usr/local/bin/
EXPOSE 4010
ENTRYPOINT ["/usr/local/bin/console"]
