"""The image that ships, on the same node: built by podman, and its layers lent to the node."""

import os
from pathlib import Path

import pytest
import yaml

from examples.cluster import shipped
from examples.cluster.site import write_site
from tests.cluster.node.conftest import Bench, Site


@pytest.fixture(scope="session")
def site(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The same cluster, whose template names the image that ships."""
    if lacking := shipped.missing():
        assert not os.environ.get("CI"), f"left out: {lacking}"
        pytest.skip(f"no trainer's image without: {lacking}")
    assert site.machine.node
    image = shipped.build()
    site.machine.node.lend(image)
    template = write_site(tmp_path_factory.mktemp("image"), site.machine.s3.endpoint, image.name)
    variables = site.environment | {"FINETUNE_TEMPLATE": str(template)}
    return Site(site.machine, variables, yaml.safe_load(template.read_bytes()))


@pytest.fixture
def small(bench: Bench) -> Path:
    """A config that trains a tiny model for two steps, with the memory that this takes."""
    return bench.config(compute={"cpus": 2, "memory_gib": 4}, samples={"prompts": []})
