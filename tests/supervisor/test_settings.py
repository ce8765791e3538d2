import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.errors import JobError, UsageError
from job.settings import read_settings

_REQUIRED = {"FINETUNE_CONFIG": "c.yaml", "FINETUNE_RUNS": "s3://runs"}
_INTERVALS = [
    f"FINETUNE_{what}_SECONDS" for what in ("HEARTBEAT", "STALE", "GRACE", "CHILD_GRACE", "ENDING", "WATCHDOG")
]


def test_a_flag_wins_over_its_variable() -> None:
    settings = read_settings(["--config", "flag.yaml"], _REQUIRED)
    assert (settings.config, settings.runs) == ("flag.yaml", "s3://runs")


def test_what_is_missing_is_named_with_its_flag_and_its_variable() -> None:
    with pytest.raises(UsageError, match="no runs given") as raised:
        read_settings(["--config", "c.yaml"], {})
    assert raised.value.resolution == "Pass --runs or set FINETUNE_RUNS."


def test_again_needs_an_id_of_its_own() -> None:
    with pytest.raises(UsageError, match="--again"):
        read_settings(["--again", "--run-id", "bot-1"], _REQUIRED)


@pytest.mark.parametrize("name", _INTERVALS)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_an_interval_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_settings([], _REQUIRED | {name: value})


@pytest.mark.parametrize("name", ["FINETUNE_MAX_ATTEMPTS", "FINETUNE_MAX_IDLE_ATTEMPTS"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_a_number_of_attempts_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_settings([], _REQUIRED | {name: value})


def test_bounds_are_the_contracts_unless_the_template_says_otherwise() -> None:
    settings = read_settings([], _REQUIRED)
    assert (settings.max_attempts, settings.max_idle_attempts, settings.watchdog_seconds) == (20, 3, 600)
    given = {"FINETUNE_MAX_ATTEMPTS": "5", "FINETUNE_MAX_IDLE_ATTEMPTS": "2", "FINETUNE_WATCHDOG_SECONDS": "1.5"}
    settings = read_settings([], _REQUIRED | given)
    assert (settings.max_attempts, settings.max_idle_attempts, settings.watchdog_seconds) == (5, 2, 1.5)


def test_each_interval_is_the_one_that_its_variable_sets() -> None:
    settings = read_settings([], _REQUIRED | {name: str(number) for number, name in enumerate(_INTERVALS, start=1)})
    fields = [name.removeprefix("FINETUNE_").lower() for name in _INTERVALS]
    assert [getattr(settings, field) for field in fields] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("pod_seconds", [2, 25, 30, 120, 3600])
def test_what_is_waited_for_after_the_grace_period_ends_before_the_pod_does(pod_seconds: int) -> None:
    grace_seconds = pod_seconds * 5 // 6  # as launcher/manifest.py gives them to the job
    settings = read_settings([], _REQUIRED | {"FINETUNE_GRACE_SECONDS": str(grace_seconds)})
    assert 0 < 3 * settings.hurried(5) < pod_seconds - grace_seconds
    assert settings.hurried(5) <= 5


def ends_with(flags: list[str]) -> int | str | None:
    """0 for settings, else the code that the start ends with."""
    try:
        read_settings(flags, _REQUIRED)
    except JobError as error:
        return error.code
    except SystemExit as ended:  # --help
        return ended.code
    return 0


_WORDS = st.sampled_from(
    ["--config", "--runs", "--run-id", "--scratch", "--check", "--again", "--help", "--", "bot-1", "Bot 1"]
)


@given(st.lists(_WORDS | st.text(max_size=9), max_size=6))
def test_no_flags_give_anything_but_settings_or_usage(flags: list[str]) -> None:
    assert ends_with(flags) in (0, 64)
