#!/usr/bin/env bash
# docker/build.sh: builds an image with docker, podman or buildah, whichever works, and prints its size by layer.
#
# From the environment: TARGET (trainer, launcher), IMAGE (name and tag), ENGINE, FLAGS of its build, and the Dockerfile's
# arguments, such as BASE_IMAGE (docs/image.md).
set -euo pipefail
cd "$(dirname "$0")/.."

works() { command -v "$1" && "$1" info; } >/dev/null 2>&1

engine=${ENGINE:-}
for each in docker podman buildah; do
  if [ -z "$engine" ] && works "$each"; then engine=$each; fi
done
[ -n "$engine" ] || { echo "docker, podman or buildah is needed; none works here" >&2; exit 1; }

target=${TARGET:-trainer}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=${IMAGE:-localhost/finetune-$target:$version}
revision=$(git describe --always --abbrev=40 --dirty --match='' 2>/dev/null || true)
source=$(git remote get-url origin 2>/dev/null | sed 's,//[^/@]*@,//,' || true) # a password in it is not for a label

arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=$source")
for name in BASE_IMAGE LAUNCHER_BASE_IMAGE SYSTEM_PYTHON PIP_INDEX_URL UV_DEFAULT_INDEX UV_PYTHON_INSTALL_MIRROR PIP_CERT SSL_CERT_FILE; do
  [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done

# shellcheck disable=SC2086 # FLAGS are words
BUILDAH_LAYERS=true "$engine" build ${FLAGS:-} "${arguments[@]}" --target "$target" --tag "$image" --file docker/Dockerfile .

if [ "$engine" = buildah ]; then
  buildah images "$image"
else
  "$engine" history --no-trunc --format '{{.Size}}	{{.CreatedBy}}' "$image" | sed 's/COPY dir:[0-9a-f]* in/COPY/' |
    grep --invert-match '^0 \?B' | cut -c 1-130
  "$engine" images "$image"
fi
