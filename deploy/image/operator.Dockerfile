# The operator: one static program, not root, nothing else in the image. Build for each architecture, from the root of the source:
#   docker buildx build --platform linux/amd64,linux/arm64 -f deploy/image/operator.Dockerfile -t REGISTRY/dotgraft-operator:TAG --push .
# Each architecture compiles on its own kind (natively or emulated), so no cross compiler is needed.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools cmake make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN target=$(uname -m)-unknown-linux-musl && rustup target add "$target" \
 && cargo build --release --locked --target "$target" -p dotgraft-operator \
 && install -D -m 755 "target/$target/release/dotgraft-operator" /out/usr/bin/dotgraft-operator

FROM scratch
LABEL org.opencontainers.image.title=dotgraft-operator org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/dotgraft-operator"]
