"""Prints a go.mod whose `tool`s are a cluster's programs: ``python3 go_mod.py kubernetes v1.37.2``.

k8s.io/kubernetes replaces its staging modules by folders of its own repository, which a module cannot carry. Each is
published as ``k8s.io/NAME v0.MINOR.PATCH``, so one replace line for each makes it buildable.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

KUBERNETES = "k8s.io/kubernetes"
CONTAINERD = "github.com/containerd/containerd/v2"
PROGRAMS = {
    KUBERNETES: (
        *(
            f"{KUBERNETES}/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
        ),
        "go.etcd.io/etcd/server/v3",
    ),
    CONTAINERD: tuple(f"{CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
}


def main(which: str, version: str) -> int:
    """Prints the module file."""
    [module] = [module for module in PROGRAMS if which in module.split("/")]
    found = subprocess.check_output(["go", "mod", "download", "-json", f"{module}@{version}"], cwd="/")
    text = Path(json.loads(found)["GoMod"]).read_text()
    settings = [line.group() for word in ("go", "godebug") if (line := re.search(rf"^{word} .*$", text, re.MULTILINE))]
    staged = re.findall(r"^\s*(k8s\.io/\S+) => \./staging", text, re.MULTILINE)
    lines = [
        "module cluster",
        *settings,
        *(f"tool {program}" for program in PROGRAMS[module]),
        f"require {module} {version}",
        *(f"replace {each} => {each} v0{version[2:]}" for each in staged),
    ]
    sys.stdout.write("\n\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
