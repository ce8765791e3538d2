#!/usr/bin/env bash
# docker/llama-cpp.sh CACHE: the pinned llama.cpp converter in CACHE/llama.cpp-VERSION, made once. Prints the directory.
#
# It comes from the source archive of llama-cpp-python, the package whose libllama the job quantizes with, so that
# converter and library are of one release. VERSION holds it. Needs Python with venv.
set -euo pipefail

version=0.3.36 # as in pyproject.toml
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

cache=$1
target=$cache/llama.cpp-$version
mkdir -p "$cache"
exec 9>"$target.lock" # a second start waits for the first, and then finds its work done
flock 9
if [ ! -d "$target" ]; then
  work=$(mktemp -d "$cache/.llama.cpp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "${PYTHON:-python3}" -m venv "$work/venv"
  echo "llama-cpp-python==$version --hash=sha256:$sha256" >"$work/requirements.txt"
  "$work/venv/bin/pip" download --quiet --no-deps --no-binary :all: --require-hashes \
    --requirement "$work/requirements.txt" --dest "$work" >&2
  tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"
  mkdir "$work/made"
  cp -r "$work/llama_cpp_python-$version"/vendor/llama.cpp/{convert_hf_to_gguf.py,convert_lora_to_gguf.py,conversion,gguf-py,LICENSE} \
    "$work/made"
  echo "$version" >"$work/made/VERSION"
  mv "$work/made" "$target"
fi
echo "$target"
