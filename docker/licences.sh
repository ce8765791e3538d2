#!/usr/bin/env bash
# docker/licences.sh: what /opt/venv holds and under which licences, in /usr/share/finetune, by tools of uv.lock.
#
#   sbom.cdx.json   every package, CycloneDX
#   licences.txt    every package with its licence's text, then the files that have another one than their package
set -euo pipefail

out=/usr/share/finetune
mkdir -p "$out"
export UV_PYTHON_INSTALL_DIR=/opt/python UV_PYTHON=3.11 UV_LINK_MODE=copy
uv venv --quiet --no-project /licences
uv pip install --quiet --python /licences --require-hashes --requirement /requirements/image.txt
/licences/bin/cyclonedx-py environment --output-reproducible --output-file "$out/sbom.cdx.json" /opt/venv/bin/python
{
  /licences/bin/pip-licenses --python /opt/venv/bin/python --format plain-vertical --with-license-file --no-license-path
  if [ -d /opt/llama.cpp ]; then
    printf '\nllama.cpp of llama-cpp-python '
    cat /opt/llama.cpp/{VERSION,LICENSE}
  fi
  printf '\nFiles whose header puts them under the GNU Affero General Public License (docs/image.md):\n'
  grep --recursive --files-with-matches --include '*.py' --extended-regexp \
    'SPDX-License-Identifier: .*(AGPL|Affero)|GNU Affero General Public License as published' /opt/venv/lib | sort || true
} >"$out/licences.txt"
