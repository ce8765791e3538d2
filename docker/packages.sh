#!/usr/bin/env bash
# docker/packages.sh REQUIREMENTS: Python 3.11, in /opt/python where the base has none, and the packages in /opt/venv.
#
# Torch and all of CUDA move to /opt/cuda, of the same layout: a layer that an upgrade of the rest does not push again.
set -euo pipefail

requirements=$1
export UV_PYTHON_INSTALL_DIR=/opt/python UV_PYTHON=3.11 UV_LINK_MODE=copy
export PYC_INVALIDATION_MODE=UNCHECKED_HASH # files may get other times on their way; nothing is looked up at a start
UV_CONFIG_FILE=$(dirname "$requirements")/uv.toml
export UV_CONFIG_FILE

mkdir -p /opt/python
uv python find >/dev/null || uv python install
rm -rf /opt/python/*/lib/python3.11/site-packages/pip* # the image installs nothing
uv venv --no-project /opt/venv
# The list is whole, and uv.lock was resolved with an override that this would not know: --no-deps. Offline first: a cache
# that was mounted may have what was compiled with the same settings, and an index is asked whether it is still new.
install() {
  uv pip install --python /opt/venv --no-deps --require-hashes --requirement "$requirements" \
    --build-constraints "$(dirname "$requirements")/image.txt" "$@"
}
install --offline || install

packages=/opt/venv/lib/python3.11/site-packages
echo /opt/finetune >"$packages/finetune.pth"
# What neither the job nor the launcher imports: Unsloth's web interface and command line (82 MB, all of it AGPL), the
# Kubernetes client's twin for asyncio (68), Arrow Flight with Arrow's headers and tests (46), AWS's other services (25),
# zstandard's backend for other Pythons (12).
rm -rf "$packages"/{studio,unsloth_cli,kubernetes/aio,pyarrow/include,pyarrow/tests,pyarrow/*flight*,zstandard/_cffi*.so}
find "$packages/botocore/data" -mindepth 1 -maxdepth 1 -type d -not -name s3 -not -name sts -not -name 'sso*' \
  -not -name signin -exec rm -rf {} +
for name in bitsandbytes cusparselt nvidia torch triton xformers; do
  [ -d "$packages/$name" ] || continue
  mkdir -p "/opt/cuda/${packages#/opt/venv/}"
  mv "$packages/$name" "/opt/cuda/${packages#/opt/venv/}"
done
