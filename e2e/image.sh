#!/usr/bin/env bash
# Makes an image from a directory, without Docker: a docker archive of one layer, which `ctr images import` takes.
#
#   e2e/image.sh OUT NAME[,NAME...] ENTRYPOINT_JSON CMD_JSON ROOT
#
# The images of our programs, and those from Debian packages, are made by deploy/image/build.sh.
set -euo pipefail
OUT=$(readlink -f "$(dirname "$1")")/$(basename "$1")
names=$(sed 's/,/","/g; s/.*/["&"]/' <<<"$2") entrypoint=$3 cmd=$4 ROOT=$(readlink -f "$5")

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
cd "$SCRATCH"
tar --sort=name --mtime=@0 --numeric-owner -C "$ROOT" -cf - . >layer.tar
layer=$(sha256sum <layer.tar | cut -d' ' -f1)
path='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":%s,"Cmd":%s,"Env":[%s]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"e2e/image.sh"}]}' \
  "$(dpkg --print-architecture)" "$entrypoint" "$cmd" "$path" "$layer" >config.json
config=$(sha256sum <config.json | cut -d' ' -f1).json
mv config.json "$config"
printf '[{"Config":"%s","RepoTags":%s,"Layers":["layer.tar"]}]' "$config" "$names" >manifest.json
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$OUT" "$config" layer.tar manifest.json
