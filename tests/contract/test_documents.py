"""Every JSON document: what is written is read back as the same, and has one byte form."""

import json
import types
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import MinLen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from docs.generate import DOCUMENTS
from job.contract.documents import Outcome
from job.contract.errors import ERROR_BY_CODE, JobError, KilledError
from job.contract.events import Event, parse_event
from job.contract.exits import IGNORED_CODES, KILLED_CODES, RETRIED_CODES, Exit, exit_name
from job.contract.keys import RunKeys, config_key, index_key, is_run_id, latest_key, run_id_of
from job.contract.model import Document, canonical_bytes, sha256_hex

SLUGS = st.from_regex(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)


def values(annotation: Any, bounds: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Values of a field's type, within its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = [item for bound in inner[1:] for item in (bound.metadata if isinstance(bound, FieldInfo) else [bound])]
        return values(inner[0], [*bounds, *found])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values, inner))
    if origin is tuple:
        least = max((bound.min_length for bound in bounds if isinstance(bound, MinLen)), default=0)
        # Each once: a quantization that is named twice is refused.
        return st.lists(values(inner[0]), min_size=least, max_size=least + 2, unique_by=repr).map(tuple)
    if origin is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return documents(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    if annotation is str:
        return texts(bounds)
    if annotation is int:
        return st.integers(**limits(bounds, 1))
    if annotation is float:
        return st.floats(**limits(bounds, 1e-6), allow_nan=False, allow_infinity=False)
    return {
        bool: st.booleans(),
        type(None): st.none(),
        date: st.dates(),
        datetime: st.datetimes(timezones=st.just(UTC)),
    }[annotation]


def texts(bounds: Sequence[Any]) -> st.SearchStrategy[str]:
    """Texts that match the pattern, where there is one."""
    pattern = next((bound.pattern for bound in bounds if getattr(bound, "pattern", None)), None)
    longest = next((bound.max_length for bound in bounds if getattr(bound, "max_length", None)), 100)
    if pattern is None:
        return st.text(max_size=20)
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= longest)


def limits(bounds: Sequence[Any], least: float) -> dict[str, Any]:
    """The bounds of a number, as hypothesis takes them."""
    found: dict[str, Any] = {}
    for bound in bounds:
        for name, key, inside in (
            ("ge", "min_value", 0),
            ("gt", "min_value", least),
            ("le", "max_value", 0),
            ("lt", "max_value", -least),
        ):
            if (edge := getattr(bound, name, None)) is not None:
                found[key] = edge + inside
    return found


def documents(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Instances of a model."""
    return st.builds(
        model, **{name: values(field.annotation, field.metadata) for name, field in model.model_fields.items()}
    )


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(data=st.data())
def test_a_document_is_read_back_as_it_was_written(name: str, data: st.DataObject) -> None:
    document = data.draw(documents(DOCUMENTS[name]))
    body = canonical_bytes(document)
    read = DOCUMENTS[name].model_validate_json(body)
    assert read == document
    assert canonical_bytes(read) == body  # type: ignore[arg-type]
    assert json.loads(body)["schema_version"] == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(values(Event))
def test_an_event_is_read_back_as_it_was_told(event: Event) -> None:
    assert parse_event(event.model_dump_json()) == event


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"event": "nonsense"}', '{"event": "saved", "step": 1}', "\x00"])
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValidationError):
        parse_event(line)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_document_refuses_unknown_keys_and_another_schema(name: str) -> None:
    for body in ('{"a_key_of_tomorrow": 1}', '{"schema_version": 2}'):
        with pytest.raises(ValidationError) as refused:
            DOCUMENTS[name].model_validate_json(body)
        assert {"extra_forbidden", "literal_error"} & {error["type"] for error in refused.value.errors()}


def test_a_document_cannot_be_changed() -> None:
    outcome = Outcome(code=0, name="OK", stage="start", message="")
    with pytest.raises(ValidationError):
        outcome.code = 1  # type: ignore[misc]


def test_nan_never_gets_into_a_document() -> None:
    class Loss(Document):
        loss: float

    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_bytes(Loss(loss=float("nan")))


@given(SLUGS | st.text(alphabet="abc-", min_size=1, max_size=80).map(lambda text: f"a{text}a"), st.binary())
def test_a_run_id_is_a_name_that_kubernetes_takes(name: str, spec: bytes) -> None:
    run_id = run_id_of(name, spec)
    assert is_run_id(run_id)
    assert len(run_id) <= 63
    assert run_id.endswith(f"-{sha256_hex(spec)[:10]}")


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a.b", "a/b", "a" * 64, "a\n"])
def test_what_is_no_run_id(text: str) -> None:
    assert not is_run_id(text)


def test_keys_are_those_that_readers_know() -> None:
    keys = RunKeys("bot-0123456789")
    assert keys.spec == "runs/bot-0123456789/spec.json"
    assert keys.result == "runs/bot-0123456789/result.json"
    assert keys.attempt(2).claim == "runs/bot-0123456789/attempts/2/claim.json"
    assert keys.attempt(2).log(1) == "runs/bot-0123456789/attempts/2/log/000001.jsonl.gz"
    assert keys.attempt(2).artifacts("gguf") == "runs/bot-0123456789/attempts/2/gguf/"
    assert latest_key("bot") == "models/bot/latest.json"
    assert index_key("bot", "20260101T000000Z", keys.run_id) == "models/bot/runs/20260101T000000Z-bot-0123456789"
    assert config_key(b"") == f"configs/{sha256_hex(b'')}.yaml"


def test_every_error_has_a_code_of_the_table() -> None:
    assert set(ERROR_BY_CODE) == set(Exit) - {Exit.OK}
    for code, error in ERROR_BY_CODE.items():
        assert issubclass(error, JobError)
        assert error("what", "what to do").code == code
        assert exit_name(code) == Exit(code).name
    assert KilledError("killed", "", 9).code == 137
    assert exit_name(137) == "KILLED"
    assert exit_name(3) == "UNKNOWN"


def test_the_table_of_exit_codes() -> None:
    assert sorted(IGNORED_CODES) == [75]
    assert sorted(RETRIED_CODES - KILLED_CODES) == [69, 71, 74, 76]
    assert sorted(KILLED_CODES) == [128, 134, 135, 137, 139, 143]
