# The agent, with btrfs-progs: it formats pools by mkfs.btrfs, and people scrub and look. It runs privileged, as root.
#   docker buildx build --platform linux/amd64,linux/arm64 -f deploy/image/agent.Dockerfile -t REGISTRY/dotgraft-agent:TAG --push .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev cmake make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p dotgraft-agent

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title=dotgraft-agent org.opencontainers.image.licenses=Apache-2.0
RUN apt-get update && apt-get install -y --no-install-recommends btrfs-progs \
 && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=build /src/target/release/dotgraft-agent /usr/bin/dotgraft-agent
ENTRYPOINT ["/usr/bin/dotgraft-agent"]
