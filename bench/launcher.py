"""The launcher, beside what a person could type instead: `kubectl` and `aws`, on a real API server and a real S3 server.

Both sides are whole processes on this machine, in turn, and the median counts. There is no node: pods stay Pending.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import urllib3

from bench import Figure, at_most
from bench.processes import PEAK_KIB
from bench.site import FINETUNE, KUBECTL, RUNS_ROOT, Site, open_site
from examples.cache import CACHE
from job.contract.keys import RunKeys, index_key
from job.contract.model import canonical_bytes

RUNS = 5_000
PAIRS = 5
HELP_GOAL_SECONDS, LAUNCH_GOAL, LIST_GOAL, MEMORY_GOAL_MIB = 0.3, 2.5, 3, 200
TRAINING_STACK = {"torch", "unsloth", "transformers", "trl", "datasets", "peft"}
_HELP_TRIES = 7
_SETTLING_SECONDS, _WATCHED_SECONDS = 5, 60
_FILLERS = 8
_AWSCLI = "1.46.2"
_LIST_AND_PEAK = f"""
import pathlib, re, sys
from launcher.cli import main
assert main(["list", "-o", "name"]) == 0
print({PEAK_KIB}, file=sys.stderr)
"""


def figures() -> list[Figure]:
    """What a start, a launch, a list of many runs and a watch cost."""
    with tempfile.TemporaryDirectory() as directory, open_site(Path(directory)) as site:
        launch, run_id = _launching(site)
        return [_help(site), *launch, *_watching(site, run_id), *_listing(site)]


def _help(site: Site) -> Figure:
    """The best of several starts of each: what else the machine does only ever adds."""
    ours = min(site.seconds(FINETUNE, "--help") for _ in range(_HELP_TRIES))
    bare = min(site.seconds(sys.executable, "-c", "pass") for _ in range(_HELP_TRIES))
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
        ours.append(site.seconds(FINETUNE, "launch", str(site.config(f"ours-{number}"))))
        config, job = site.config(f"theirs-{number}"), site.manifest(f"theirs-{number}")
        up = site.seconds(aws, "s3", "cp", str(config), f"{RUNS_ROOT}/configs/{config.name}")
        theirs.append(up + site.seconds(KUBECTL, "create", "-f", str(job)))

    shown = [sys.executable, "-X", "importtime", FINETUNE, "launch", "-o", "name"]
    began = time.perf_counter()
    launched = site.run(*shown, str(site.config("imports")))
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
    with subprocess.Popen([FINETUNE, "watch", run_id], env=site.environment, stdout=subprocess.DEVNULL) as process:
        time.sleep(_SETTLING_SECONDS)
        before = site.requests()
        time.sleep(_WATCHED_SECONDS)
        asked = site.requests() - before
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
        ours.append(site.seconds(FINETUNE, "list"))
        theirs.append(site.seconds(KUBECTL, "get", "jobs"))

    before = site.requests()
    with _counting(site.environment["AWS_ENDPOINT_URL_S3"]) as (endpoint, seen):
        counted = replace(site, environment=site.environment | {"AWS_ENDPOINT_URL_S3": endpoint})
        listed = counted.run(sys.executable, "-c", _LIST_AND_PEAK)
    pages = (site.requests() - before)["LIST"]
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
    prepared = site.launcher.prepare(site.config("many"))
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
