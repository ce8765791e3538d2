#!/usr/bin/env bash
# docker/llama-cpp.sh CACHE: the pinned llama.cpp converter in CACHE/llama.cpp-VERSION, made once. Prints the directory.
#
# It comes from the source archive of llama-cpp-python, the package whose libllama the job quantizes with, at the version
# and hash of uv.lock: converter and library are of one release. PYTHON names a Python 3.11 or newer that has venv.
set -euo pipefail

python=${PYTHON:-python3}
pinned=$("$python" - "$(dirname "$0")/../uv.lock" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    [package] = [each for each in tomllib.load(file)["package"] if each["name"] == "llama-cpp-python"]
print(package["version"], package["sdist"]["hash"])
PYTHON
)
read -r version hash <<<"$pinned"

cache=$1
target=$cache/llama.cpp-$version
mkdir -p "$cache"
exec 9>"$target.lock" # a second start waits for the first, and then finds its work done
flock 9
if [ ! -d "$target" ]; then
  work=$(mktemp -d "$cache/.llama.cpp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "$python" -m venv "$work/venv"
  echo "llama-cpp-python==$version --hash=$hash" >"$work/requirements.txt"
  "$work/venv/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python --require-hashes \
    --requirement "$work/requirements.txt" --dest "$work" >&2
  mkdir "$work/made"
  source=llama_cpp_python-$version/vendor/llama.cpp
  tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work/made" --strip-components 3 --no-same-owner \
    "$source"/{convert_hf_to_gguf.py,convert_lora_to_gguf.py,conversion,gguf-py/gguf,LICENSE}
  echo "$version" >"$work/made/VERSION"
  chmod -R u=rwX,go=rX "$work/made"
  mv "$work/made" "$target"
fi
echo "$target"
