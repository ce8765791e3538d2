#!/usr/bin/env bash
# docker/requirements.sh DIRECTORY: what uv.lock says, as lists with hashes, one for each image and one for building.
#
# A list is the same as long as the lock's packages are: a new version of our own code leaves the packages' layers alone.
set -euo pipefail

mkdir -p "$1"
list() { uv export --quiet --frozen --no-header --no-annotate --no-emit-project --output-file "$@" >/dev/null; }
list "$1/launcher.txt" --no-default-groups
list "$1/trainer.txt" --no-default-groups --extra train
list "$1/image.txt" --only-group image
sed -n '/^\[tool.uv.extra-build-variables\]/,/^$/s/^\[tool.uv./[/p;/^llama-cpp-python = /p' pyproject.toml >"$1/uv.toml"
[ "$(wc -l <"$1/uv.toml")" = 2 ]
