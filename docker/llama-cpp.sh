#!/usr/bin/env bash
# docker/llama-cpp.sh CACHE: the pinned llama.cpp in CACHE/llama.cpp-VERSION, made once. Prints the directory.
#
# Converter, quantizer and libllama come from one source archive, so they are of one release. What is in it:
#   convert_hf_to_gguf.py convert_lora_to_gguf.py conversion/ gguf-py/   the converters, as they are
#   python/llama_cpp/                                                    libllama with its Python bindings
# Needs Python with venv, a C and a C++ compiler; cmake and ninja come from PyPI.
set -euo pipefail

version=0.3.36 # of llama-cpp-python, whose source archive vendors all of llama.cpp
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

cache=$1
target=$cache/llama.cpp-$version
mkdir -p "$cache"
exec 9>"$cache/llama.cpp.lock" # a second start waits for the first, and then finds its work done
flock 9
if [ ! -d "$target" ]; then
  echo "Building llama.cpp $version in $target (about 4 minutes, once)" >&2
  work=$(mktemp -d "$cache/.llama.cpp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "${PYTHON:-python3}" -m venv "$work/venv"
  pip=$work/venv/bin/pip
  echo "llama-cpp-python==$version --hash=sha256:$sha256" >"$work/requirements.txt"
  "$pip" download --quiet --no-deps --no-build-isolation --no-binary :all: --require-hashes \
    -r "$work/requirements.txt" -d "$work" 2>"$work/log" ||
    "$pip" download --quiet --no-deps --no-binary :all: --require-hashes -r "$work/requirements.txt" -d "$work"
  tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"
  # Runs on any x86-64 server since 2013 (AVX2): NATIVE would use what this machine alone has, and die elsewhere.
  # Without OpenMP the library needs nothing but libstdc++.
  CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAVA_BUILD=OFF" \
    "$pip" wheel --quiet --no-deps "$work/llama_cpp_python-$version" -w "$work/wheel"
  mkdir "$work/made"
  "$work/venv/bin/python" -m zipfile -e "$work"/wheel/llama_cpp_python-*.whl "$work/made/python"
  rm -rf "$work/made/python"/{lib,include,bin} # the development files: a second copy of the library
  source=$work/llama_cpp_python-$version/vendor/llama.cpp
  cp -r "$source"/{convert_hf_to_gguf.py,convert_lora_to_gguf.py,conversion,gguf-py,LICENSE} "$work/made"
  mv "$work/made" "$target"
fi
echo "$target"
