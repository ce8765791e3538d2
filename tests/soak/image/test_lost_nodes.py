"""What tests/soak does to a stand-in's node, done to a real finetune in the image that ships."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.demo.__main__ import ROOT as BUCKET
from job.storage.opening import open_storage
from tests.cluster.node.conftest import Bench
from tests.soak.image.conftest import Roomy
from tests.soak.test_lost_nodes import (
    test_a_node_that_comes_back,
    test_a_node_that_is_given_up_and_comes_back,
    test_a_pod_that_is_overtaken_on_a_lost_node,
    test_a_pod_that_was_deleted_by_force_and_trains_on,
)
from tests.tiny import sums

__all__ = [
    "test_a_node_that_comes_back",
    "test_a_node_that_is_given_up_and_comes_back",
    "test_a_pod_that_is_overtaken_on_a_lost_node",
    "test_a_pod_that_was_deleted_by_force_and_trains_on",
]


@dataclass(frozen=True)
class Slow(Roomy):
    """Takes so many rows in each step that the run outlasts the minute in which a node is missed."""

    def config(self, *orders: str, name: str = "bot", **keys: Any) -> Path:
        rows = "".join(json.dumps(row) + "\n" for row in sums(256))
        open_storage(BUCKET).put("tiny/many.jsonl", rows.encode())
        training = keys.pop("training") | {"gradient_accumulation_steps": 128}
        return super().config(name=name, training=training, dataset={"train": f"{BUCKET}/tiny/many.jsonl"}, **keys)


@pytest.fixture(scope="session")
def kind() -> type[Bench]:
    return Slow
