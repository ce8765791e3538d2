"""Would the comparison see an error? Each that is planted is caught, and the same run without it passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.contract.plan import Plan
from job.scratch import Scratch
from tests.gpu_path.emulation import on_card
from tests.gpu_path.interpreter import SPOILS
from tests.gpu_path.runs import ADAPTER, LOSS, Distance, Trained, distance, gpu_config, gpu_plan, reference, train
from tests.tiny import write_rows

STEPS = 2
LOGITS = {"UNSLOTH_RETURN_LOGITS": "1"}
"""Makes Unsloth take its own kernel for the cross entropy, where the default is a chunked function of torch."""
Rows = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Trained]:
    """The reference, 4-bit or not."""
    runs: dict[bool, Trained] = {}

    def of(four_bit: bool) -> Trained:
        if four_bit not in runs:
            scratch = Scratch(tmp_path_factory.mktemp("plain"))
            runs[four_bit] = reference(planned(scratch, base, four_bit), scratch)
        return runs[four_bit]

    return of


def planned(scratch: Scratch, base: Path, four_bit: bool = False) -> Plan:
    return gpu_plan(scratch, base, gpu_config(base, four_bit=four_bit, training={"max_steps": STEPS}))


def off(apart: Distance) -> bool:
    """Whether the figures alone tell, without a look at the batches."""
    return max(apart.loss, apart.grad_norm) > LOSS or apart.adapter > ADAPTER


@pytest.mark.parametrize(("four_bit", "own"), [(False, {}), (False, LOGITS), (True, {})])
def test_the_unspoiled_run_passes(
    four_bit: bool, own: dict[str, str], plain: Callable[[bool], Trained], base: Path, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "run")
    apart = distance(train(planned(scratch, base, four_bit), scratch, **own), plain(four_bit))
    assert apart.within(LOSS, ADAPTER), apart


@pytest.mark.skipif(on_card(), reason="the interpreter spoils, and a card compiles")
@pytest.mark.parametrize("name", SPOILS)
def test_a_spoiled_kernel_is_caught(
    name: str, plain: Callable[[bool], Trained], base: Path, figures: dict[str, Distance], tmp_path: Path
) -> None:
    scratch, four_bit = Scratch(tmp_path / "run"), name == "nf4_offset"
    own = LOGITS if name == "cross_entropy" else {}
    spoiled = train(planned(scratch, base, four_bit), scratch, GPU_PATH_SPOIL=name, **own)
    assert spoiled.hits[name] > 0
    figures[f"spoiled: {name}"] = apart = distance(spoiled, plain(four_bit))
    assert off(apart), apart


def test_wrong_accumulation_is_caught(plain: Callable[[bool], Trained], base: Path, tmp_path: Path) -> None:
    """Each micro batch counts the same, however many of its tokens are trained on."""
    scratch = Scratch(tmp_path / "run")
    spoiled = train(planned(scratch, base), scratch, GPU_PATH_SPOIL="accumulation")
    assert spoiled.hits["accumulation"] == STEPS
    assert off(distance(spoiled, plain(False)))


def shifted(rows: Rows) -> Rows:
    return [(ids, [*labels[1:], -100]) for ids, labels in rows]


def without_eos(rows: Rows) -> Rows:
    spoiled = []
    for ids, labels in rows:
        last = max(at for at, label in enumerate(labels) if label != -100)
        spoiled.append((ids, [*labels[:last], -100, *labels[last + 1 :]]))
    return spoiled


@pytest.mark.parametrize("spoil", [shifted, without_eos])
def test_a_wrong_mask_is_caught(
    spoil: Callable[[Rows], Rows], plain: Callable[[bool], Trained], base: Path, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "run")
    plan = planned(scratch, base)
    rows = read_rows(Path(plan.train_rows))
    spoiled = spoil(rows)
    assert all(one != other for one, other in zip(rows, spoiled, strict=True))
    write_rows(Path(plan.train_rows), spoiled)
    assert off(distance(train(plan, scratch), plain(False)))


def read_rows(path: Path) -> Rows:
    with pa.memory_map(str(path)) as file:
        return [(row["input_ids"], row["labels"]) for row in pa.ipc.open_stream(file).read_all().to_pylist()]


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("training", {"learning_rate": 4e-3}),
        ("lora", {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")}),
    ],
)
def test_a_wrong_hyperparameter_is_caught(
    section: str, change: dict[str, Any], plain: Callable[[bool], Trained], base: Path, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "run")
    plan = planned(scratch, base)
    right = getattr(plan.recipe, section)
    wrong = right.model_copy(update=change)
    assert wrong != right
    plan = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={section: wrong})})
    assert off(distance(train(plan, scratch), plain(False)))
