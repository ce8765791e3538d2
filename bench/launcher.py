"""The launcher, beside what a person could type instead: `kubectl` and `aws`, on a real API server and a real S3 server.

Both sides are whole processes on this machine, in turn, and the median counts. There is no node: pods stay Pending.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import urllib3
import yaml

from bench import Figure, at_most
from examples.cluster.control_plane import ControlPlane, control_plane
from examples.demo.__main__ import CONFIG, ROOT, put_inputs
from examples.demo.base_model import CACHE
from examples.demo.server import s3_server
from job.contract.keys import RunKeys, index_key
from job.contract.model import canonical_bytes
from job.storage.opening import open_storage
from launcher import Launcher

RUNS = 5_000
PAIRS = 5
HELP_GOAL_SECONDS, LAUNCH_GOAL, LIST_GOAL, MEMORY_GOAL_MIB = 0.3, 2.5, 3, 200
TRAINING_STACK = {"torch", "unsloth", "transformers", "trl", "datasets", "peft"}
_HELP_TRIES = 7
_SETTLING_SECONDS, _WATCHED_SECONDS = 5, 60
_FILLERS = 8
_RUNS_ROOT = f"{ROOT}/finetune"  # beside the inputs
_TEMPLATE = Path(__file__).parents[1] / "k8s" / "job.yaml"
_FINETUNE, _KUBECTL = (str(Path(sys.executable).with_name(name)) for name in ("finetune", "kubectl"))
_AWSCLI = "1.46.2"
# ru_maxrss would not do: a process inherits that of the one that started it.
_LIST_AND_PEAK = """
import re, sys
from pathlib import Path
from launcher.cli import main
assert main(["list", "-o", "name"]) == 0
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@dataclass(frozen=True)
class Site:
    """A cluster and a store, and the variables that lead every command there."""

    plane: ControlPlane
    launcher: Launcher
    environment: dict[str, str]
    directory: Path
    """For configs and manifests."""


def figures() -> list[Figure]:
    """What a start, a launch, a list of many runs and a watch cost."""
    with tempfile.TemporaryDirectory() as directory, _site(Path(directory)) as site:
        launch, run_id = _launching(site)
        return [_help(site), *launch, *_watching(site, run_id), *_listing(site)]


@contextmanager
def _site(directory: Path) -> Iterator[Site]:
    """As a site sets itself up once: a namespace for restricted pods with the trainer's account, and the demo's inputs."""
    with control_plane(directory / "plane") as plane, s3_server(directory / "s3", ROOT.removeprefix("s3://")) as server:
        os.environ.update(server.environment)
        put_inputs(open_storage(ROOT), CONFIG.read_bytes())
        kubeconfig = str(plane.kubeconfig())
        launcher = Launcher(_RUNS_ROOT, _TEMPLATE, kubeconfig, namespace="bench")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        namespace = {"metadata": {"name": "bench", "labels": labels}}
        launcher.cluster.api.send("POST", "/api/v1/namespaces", body=namespace)
        account = {"metadata": {"name": "finetune-trainer"}}
        launcher.cluster.api.send("POST", "/api/v1/namespaces/bench/serviceaccounts", body=account)
        inherited = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = inherited | {
            "HOME": str(directory),  # kubectl keeps there what the API server serves
            "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),  # compiled once, whatever machine this is; aws as well
            "KUBECONFIG": kubeconfig,
            "FINETUNE_RUNS": _RUNS_ROOT,
            "FINETUNE_TEMPLATE": str(_TEMPLATE),
        }
        site = Site(plane, launcher, environment, directory)
        _run(site, _KUBECTL, "config", "set-context", "--current", "--namespace=bench")
        yield site


def _help(site: Site) -> Figure:
    """The best of several starts of each: what else the machine does only ever adds."""
    ours = min(_seconds(site, _FINETUNE, "--help") for _ in range(_HELP_TRIES))
    bare = min(_seconds(site, sys.executable, "-c", "pass") for _ in range(_HELP_TRIES))
    return Figure(
        name="finetune --help, beside a bare interpreter",
        ours=ours,
        theirs=bare,
        ratio=ours / bare,
        goal=f"<= {HELP_GOAL_SECONDS} s more",
        holds=ours - bare <= HELP_GOAL_SECONDS,
        unit="s",
    )


def _launching(site: Site) -> tuple[list[Figure], str]:
    """Launches, each of a run of its own, in turn with theirs; and what of one launch is imports. The last run's id."""
    aws = _aws()
    ours, theirs = [], []
    for number in range(PAIRS + 1):
        ours.append(_seconds(site, _FINETUNE, "launch", str(_config(site, f"ours-{number}"))))
        config, job = _config(site, f"theirs-{number}"), _manifest(site, f"theirs-{number}")
        up = _seconds(site, aws, "s3", "cp", str(config), f"{_RUNS_ROOT}/configs/{config.name}")
        theirs.append(up + _seconds(site, _KUBECTL, "create", "-f", str(job)))

    shown = [sys.executable, "-X", "importtime", _FINETUNE, "launch", "-o", "name"]
    began = time.perf_counter()
    launched = _run(site, *shown, str(_config(site, "imports")))
    whole = time.perf_counter() - began
    imported = _imports(launched.stderr)
    if stack := TRAINING_STACK & {name.partition(".")[0] for name in imported}:
        raise AssertionError(f"the launcher imports {', '.join(sorted(stack))}")
    if (jobs := sum(1 for _ in site.launcher.cluster.job_metadata(""))) != len(ours) + len(theirs) + 1:
        raise AssertionError(f"{jobs} Jobs, of {len(ours)} and {len(theirs)} launches and one")
    spent = sum(imported.values())
    imports = Figure(
        name=f"launch under -X importtime: its {len(imported):,} imports, beside the whole",
        ours=spent,
        theirs=whole,
        ratio=spent / whole,
        goal="shown",
        holds=True,
        unit="s",
    )
    launch = at_most(  # the first of each fills caches
        "launch, beside aws s3 cp and kubectl create -f", median(ours[1:]), median(theirs[1:]), LAUNCH_GOAL
    )
    return [launch, imports], launched.stdout.strip()


def _watching(site: Site, run_id: str) -> list[Figure]:
    """The lists and watches of a minute in which a run stays pending, by the API server's own count of those that ended."""
    with subprocess.Popen([_FINETUNE, "watch", run_id], env=site.environment, stdout=subprocess.DEVNULL) as process:
        time.sleep(_SETTLING_SECONDS)
        before = _requests(site)
        time.sleep(_WATCHED_SECONDS)
        asked = _requests(site) - before
        if process.poll() is not None:
            raise AssertionError(f"the watch of {run_id} ended with {process.returncode}")
        process.terminate()
    if not asked["WATCH"]:
        raise AssertionError("the API server has counted no watch")
    return [
        at_most(f"watch of a pending run, {verb} requests in a minute beside one", asked[verb], 1, 1, "requests")
        for verb in ("LIST", "WATCH")
    ]


def _listing(site: Site) -> list[Figure]:
    """`list` in a namespace and a root with thousands of runs: time, memory, and whose documents it reads."""
    site.plane.kill("controllers")  # at 20 requests a second they would take minutes to note each Job as suspended
    _fill(site)
    ours, theirs = [], []
    for _ in range(PAIRS):
        ours.append(_seconds(site, _FINETUNE, "list"))
        theirs.append(_seconds(site, _KUBECTL, "get", "jobs"))

    before = _requests(site)
    with _counting(site.environment["AWS_ENDPOINT_URL_S3"]) as (endpoint, seen):
        counted = Site(site.plane, site.launcher, site.environment | {"AWS_ENDPOINT_URL_S3": endpoint}, site.directory)
        listed = _run(counted, sys.executable, "-c", _LIST_AND_PEAK)
    pages = (_requests(site) - before)["LIST"]
    rows = listed.stdout.split()
    keys = (path.partition("?")[0] for path in seen)
    read = [found[1] for key in keys if (found := re.search(r"/finetune/runs/([^/]+)/", key))]
    if not read or not set(read) <= set(rows):
        raise AssertionError(f"{len(rows)} rows shown, and of others read {sorted(set(read) - set(rows))[:5]}")
    return [
        at_most(
            f"list of {RUNS:,} runs, {pages} pages, beside kubectl get jobs", median(ours), median(theirs), LIST_GOAL
        ),
        at_most("list, peak memory beside what is allowed", int(listed.stderr) / 1024, MEMORY_GOAL_MIB, 1, "MiB"),
        at_most(
            f"list, runs read from S3 ({len(read)} documents, {len(seen) - len(read)} pages of the index) beside rows",
            len(set(read)),
            len(rows),
            1,
            "runs",
        ),
    ]


def _fill(site: Site) -> None:
    """Many runs, each with its Job, which is suspended, its spec and its place in the index."""
    prepared = site.launcher.prepare(_config(site, "many"))
    name, spec = prepared.spec.recipe.name, canonical_bytes(prepared.spec)
    job = json.dumps(prepared.job | {"spec": prepared.job["spec"] | {"suspend": True}})
    cluster, storage, now = site.launcher.cluster, site.launcher.storage, datetime.now(UTC)

    def add(number: int) -> None:
        run_id = f"{name}-{number:010x}"
        if cluster.create_job(json.loads(job.replace(prepared.run_id, run_id))) is None:
            raise AssertionError(f"{run_id} is there already")
        storage.put(RunKeys(run_id).spec, spec)
        storage.put(index_key(name, f"{now - timedelta(minutes=number):%Y%m%dT%H%M%SZ}", run_id), b"")

    with ThreadPoolExecutor(_FILLERS) as workers:
        for done, _ in enumerate(workers.map(add, range(RUNS)), 1):
            if done % 500 == 0:
                print(f"{done:,} of {RUNS:,} runs made", file=sys.stderr)


def _config(site: Site, name: str) -> Path:
    """The demo's config under another name, and so another run."""
    path = site.directory / f"{name}.yaml"
    path.write_text(CONFIG.read_text("utf-8").replace("name: demo\n", f"name: {name}\n", 1))
    return path


def _manifest(site: Site, name: str) -> Path:
    """The Job that a person would write for a config: the template with its name and where its config is."""
    job = yaml.safe_load(_TEMPLATE.read_bytes())
    job["metadata"]["name"] = name
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["env"][0]["value"] = f"{_RUNS_ROOT}/configs/{name}.yaml"
    path = site.directory / f"{name}.job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def _aws() -> str:
    """The AWS command line, in a cache outside the tree; installed when it is not there."""
    place = CACHE / f"awscli-{_AWSCLI}"
    aws = place / "bin" / "aws"
    if not aws.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", f"awscli=={_AWSCLI}"], check=True)
    return str(aws)


def _imports(told: str) -> dict[str, float]:
    """Each module's own seconds, as -X importtime tells them among other lines."""
    lines = (re.fullmatch(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)", line) for line in told.splitlines())
    return {found[2]: int(found[1]) / 1e6 for found in lines if found}


def _requests(site: Site) -> Counter[str]:
    """Lists and watches of Jobs and pods in one namespace, by verb. The controllers' own are of the whole cluster."""
    told = site.launcher.cluster.api.send("GET", "/metrics", accept="*/*").body.decode()
    counts: Counter[str] = Counter()
    for line in told.splitlines():
        if line.startswith("apiserver_request_total{"):
            labels, count = dict(re.findall(r'(\w+)="([^"]*)"', line)), line.rpartition(" ")[2]
            if labels["resource"] in ("jobs", "pods") and labels["scope"] in ("namespace", "resource"):
                counts[labels["verb"]] += int(float(count))
    return counts


@contextmanager
def _counting(upstream: str) -> Iterator[tuple[str, list[str]]]:
    """A server that passes reads on to another, and notes their paths."""
    pool = urllib3.connection_from_url(upstream, maxsize=32)
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.path)
            answer = pool.urlopen("GET", self.path, headers=dict(self.headers), decode_content=False)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.data)))
            self.end_headers()
            self.wfile.write(answer.data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, pool:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()


def _seconds(site: Site, *command: str) -> float:
    began = time.perf_counter()
    _run(site, *command)
    return time.perf_counter() - began


def _run(site: Site, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=site.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done
