"""A proxy that cannot be used: it is told in a sentence, and its password never."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from job.contract.exits import Exit
from tests.conftest import ROOT

NOBODY = "https://127.0.0.1:1"
PROXIES = [
    "http://user:hunter secret@:99999",
    "http://user:hunter/secret@127.0.0.1:1",
    "http://user:hunter@secret@127.0.0.1:99999",
    "http://user:huntersecret@127.0.0.1:99999",
    "http://user:huntersecret@127.0.0.1:1",
    "socks5://user:huntersecret@127.0.0.1:1",
    "user:huntersecret@127.0.0.1:1",
]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    named = {
        "clusters": [{"name": "nobody", "cluster": {"server": NOBODY}}],
        "users": [{"name": "me", "user": {"token": "token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "nobody", "user": "me"}}],
        "current-context": "here",
    }
    path.write_text(yaml.safe_dump(named))
    return path


def finetune(proxy: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()} | {
        "HTTPS_PROXY": proxy,
        "HTTP_PROXY": proxy,
        "AWS_ENDPOINT_URL_S3": NOBODY,
        "AWS_REGION": "nowhere",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_MAX_ATTEMPTS": "1",
        "FINETUNE_S3_BUDGET_SECONDS": "0.1",
    }
    command = [sys.executable, "-m", "launcher.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def check(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode in (Exit.USAGE, Exit.S3_UNAVAILABLE), ended.stderr
    assert ended.stderr
    for part in ("Traceback", "hunter", "secret"):
        assert part not in ended.stdout + ended.stderr


@pytest.mark.parametrize("proxy", PROXIES)
def test_before_the_api_server(proxy: str, kubeconfig: Path, tmp_path: Path) -> None:
    check(finetune(proxy, "status", "bot-0123456789", "--runs", str(tmp_path), "--kubeconfig", str(kubeconfig)))


@pytest.mark.parametrize("proxy", PROXIES)
def test_before_the_store(proxy: str, tmp_path: Path) -> None:
    check(finetune(proxy, "pull", "bot-0123456789", "--runs", "s3://bucket", "--to", str(tmp_path)))
