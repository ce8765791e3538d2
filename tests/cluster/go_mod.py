"""Prints a go.mod that builds Kubernetes from Go modules: ``python3 go_mod.py v1.37.2``.

k8s.io/kubernetes replaces its staging modules by folders of its own repository, which a module cannot carry. Each is
published as ``k8s.io/NAME v0.MINOR.PATCH``, so one replace line for each makes it buildable.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
ETCD = "go.etcd.io/etcd/server/v3"


def main(version: str) -> int:
    """Prints the module file."""
    found = subprocess.check_output(
        ["go", "mod", "download", "-json", f"k8s.io/kubernetes@{version}"], cwd="/", env=None
    )
    text = Path(json.loads(found)["GoMod"]).read_text()
    go, godebug = (re.search(rf"^{word} .*$", text, re.MULTILINE) for word in ("go", "godebug"))
    assert go
    assert godebug
    staged = re.findall(r"^\s*(k8s\.io/\S+) => \./staging", text, re.MULTILINE)
    tools = [*(f"k8s.io/kubernetes/cmd/{name}" for name in PROGRAMS), ETCD]
    lines = [
        "module testcluster",
        go.group(),
        godebug.group(),
        *(f"tool {tool}" for tool in tools),
        f"require k8s.io/kubernetes {version}",
        *(f"replace {module} => {module} v0{version[2:]}" for module in staged),
    ]
    sys.stdout.write("\n\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
