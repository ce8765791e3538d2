"""The safetensors header: whatever the bytes are, the answer is its tensors or one sentence."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from job.contract.errors import DataError
from job.weights import read_header, some

WHOLE = save(
    {
        "a": np.zeros((2, 3), np.float16),
        "b": np.zeros(4, np.int64),
        "empty": np.zeros((0, 5), np.float32),
        "flag": np.zeros(3, np.bool_),
        "scalar": np.zeros((), np.float32),
    },
    metadata={"format": "pt"},
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "model.safetensors"


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_good_file(file: Path) -> None:
    file.write_bytes(WHOLE)
    assert {name: (tensor.shape, tensor.size) for name, tensor in read_header(file).items()} == {
        "a": ((2, 3), 12),
        "b": ((4,), 32),
        "empty": ((0, 5), 0),
        "flag": ((3,), 3),
        "scalar": ((), 4),
    }


def test_every_cut_is_found(file: Path) -> None:
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(DataError, match=r"model\.safetensors"):
            read_header(file)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": entry(), "b": entry()},  # the same bytes
        {"a": entry(offsets=(4, 8))},  # a gap before it
        {"a": entry(offsets=(0, 3))},  # fewer bytes than its shape
        {"a": entry(offsets=(4, 0))},
        {"a": entry(offsets=(0, 4, 8))},
        {"a": entry(shape=(-1,), offsets=(0, 4))},
        {"a": entry(shape=(2**62, 2**62), offsets=(0, 4))},
        {"a": entry(shape=(10**30,), offsets=(0, 4))},
        {"a": entry(shape=(1.0,))},
        {"a": entry(dtype="F33")},
        {"a": entry(dtype=None)},
        {"a": {"dtype": "F32"}},
        {"a": []},
        [],
        None,
        {},  # four bytes that belong to nothing
    ],
)
def test_headers_that_lie(file: Path, tensors: Any) -> None:
    file.write_bytes(with_header(json.dumps(tensors).encode(), bytes(4)))
    with pytest.raises(DataError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("header", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000, b'{"a": \x00}'])
def test_headers_that_are_no_json(file: Path, header: bytes) -> None:
    file.write_bytes(with_header(header))
    with pytest.raises(DataError, match=r"model\.safetensors"):
        read_header(file)


def test_a_length_beyond_all_files(file: Path) -> None:
    file.write_bytes((2**64 - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match="no whole header"):
        read_header(file)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F4", ""]) | _JSON,
        "shape": st.lists(st.integers(-1, 4)) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3) | _JSON,
    }
)


@given(
    content=st.binary()
    | st.binary().map(with_header)
    | st.builds(
        lambda tensors, data: with_header(json.dumps(tensors).encode(), data),
        st.dictionaries(st.text(), _ENTRY | _JSON),
        st.binary(),
    )
)
def test_arbitrary_bytes_end_in_tensors_or_a_message(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with contextlib.suppress(DataError):
        tensors = read_header(file)
        assert sum(tensor.size for tensor in tensors.values()) == len(content) - 8 - int.from_bytes(
            content[:8], "little"
        )


def test_some_names() -> None:
    assert some({"c", "b", "a"}) == "a, b, c"
    assert some(["5", "4", "3", "2", "1"]) == "1, 2, 3 and 2 more"
