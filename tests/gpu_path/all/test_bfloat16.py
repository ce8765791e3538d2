"""bfloat16, the mode of a real run: as near to plain peft as each of the two is to float32."""

from pathlib import Path

import pytest

from job.scratch import Scratch
from tests.gpu_path.emulation import on_card
from tests.gpu_path.runs import Distance, distance, gpu_config, gpu_plan, reference, train
from tests.gpu_path.test_training import launches


@pytest.mark.parametrize("four_bit", [False, True])
def test_bfloat16_is_no_noisier_than_plain_pefts(
    four_bit: bool, base16: Path, figures: dict[str, Distance], tmp_path: Path
) -> None:
    places = [Scratch(tmp_path / name) for name in ("ours", "plain", "exact")]
    types = ("bfloat16", "bfloat16", "float32")
    plans = [
        gpu_plan(scratch, base16, gpu_config(base16, dtype, four_bit, {"max_steps": 3}))
        for scratch, dtype in zip(places, types, strict=True)
    ]
    ours = train(plans[0], places[0])
    assert on_card() or ours.launches == launches(2 * 3) | ({"_nf4_dequant_kernel": 252} if four_bit else {})
    plain, exact = (reference(plan, scratch) for plan, scratch in zip(plans[1:], places[1:], strict=True))
    apart = distance(ours, plain)
    noises = [distance(run, exact) for run in (ours, plain)]
    assert apart.same_batches
    kind = "QLoRA" if four_bit else "LoRA"
    names = (f"{kind}, bfloat16", f"{kind}, bfloat16 beside float32: ours", f"{kind}, bfloat16 beside float32: peft")
    figures.update(zip(names, (apart, *noises), strict=True))
    for figure in ("loss", "grad_norm", "adapter"):
        noise = max(getattr(each, figure) for each in noises)
        assert 0 < noise < 0.5, f"{figure}: the noise is {noise}"
        assert getattr(apart, figure) <= 2 * noise, f"{figure}: {apart}, {noises}"
