#!/usr/bin/env bash
# docker/pin.sh: resolves the tags of the Dockerfile's bases anew, and writes the digests that the registry has for them.
set -euo pipefail
cd "$(dirname "$0")/.."

digest_of() {
  if command -v skopeo >/dev/null; then
    skopeo inspect --no-tags --format '{{.Digest}}' "docker://docker.io/$1"
  elif command -v docker >/dev/null; then
    docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
  else
    echo "skopeo or docker with buildx is needed" >&2
    return 1
  fi
}

pinned=$(cat docker/Dockerfile)
for name in BASE_IMAGE LAUNCHER_BASE_IMAGE; do
  tag=$(sed -n "s/^ARG $name=\(.*\)@sha256:.*/\1/p" docker/Dockerfile)
  digest=$(digest_of "$tag")
  [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "no digest for $tag: $digest" >&2; exit 1; }
  echo "$tag@$digest"
  pinned=$(sed "s,^ARG $name=.*,ARG $name=$tag@$digest," <<<"$pinned")
done
echo "$pinned" >docker/Dockerfile
