"""Safetensors, read as far as their headers: which files make the one set, what is in them, and whether it is whole.

The format is 8 bytes (the header's length, little-endian), the header (JSON) and the tensors' bytes without a gap
(https://github.com/huggingface/safetensors#format). Nothing here loads a tensor.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from job.contract.errors import DataError, NoInputError
from job.contract.model import Document

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000
"""As the format's own reader has it."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class Tensor(Document):
    """One entry of a header."""

    dtype: Annotated[str, Field(pattern=r"^(BOOL|[IU](8|16|32|64)|F(16|32|64)|BF16|F8_E4M3|F8_E5M2)$")]
    shape: Annotated[tuple[_Count, ...], Field(strict=False)]
    data_offsets: Annotated[tuple[_Count, _Count], Field(strict=False)]
    """First byte and the byte after the last, counted from the header's end."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Its length in bytes, by dtype and shape."""
        bits = 8 if self.dtype.startswith(("BOOL", "F8")) else int(self.dtype.lstrip("BFIU"))
        return self.elements * bits // 8


class _Index(BaseModel):
    """The file that says which shard holds which tensor."""

    weight_map: dict[str, str] = Field(min_length=1)


_TENSORS: TypeAdapter[dict[str, Tensor]] = TypeAdapter(dict[str, Tensor])


def complete_set(directory: Path) -> tuple[str, ...]:
    """The file names of the one set of weights: `model.safetensors`, or the shards that the index names.

    Raises:
        NoInputError: there are none, or some are missing.
        DataError: they are pickled, or there are two sets.
    """
    return check_set([path.name for path in directory.iterdir()], directory)


def check_set(names: Collection[str], directory: Path) -> tuple[str, ...]:
    """As `complete_set`, of weights that need not be in the directory yet.

    Args:
        names: of the files that are, or will be, there.
        directory: holds the index, if there is one.
    """
    there = {name for name in names if name.endswith(".safetensors")}
    if not there:
        pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
        if pickles:
            raise DataError(
                f"the base model has pickled weights only ({some(pickles)}), and loading those can run any code",
                "Convert it where you trust it: save_pretrained writes safetensors.",
            )
        raise NoInputError("the base model has no safetensors", "Name a directory of 16-bit safetensors.")
    index = _read_index(directory)
    if index is None and len(there) > 1 and WEIGHTS not in there:
        raise NoInputError(f"the base model has {len(there)} safetensors and no {INDEX}", "Add the index file.")
    shards = {WEIGHTS} if index is None else set(index.values())
    if missing := shards - there:
        raise NoInputError(f"the base model lacks {some(missing)}", "Add the files that are missing.")
    if extra := there - shards:
        raise DataError(
            f"the base model has a second set of weights: {some(extra)} beside {some(shards)}",
            "Keep one set: the export reads every safetensors file of the directory.",
        )
    return tuple(sorted(shards))


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the one set by name; each shard holds what the index says of it.

    Raises:
        NoInputError: as `complete_set`.
        DataError: as `complete_set`, or a file is damaged.
    """
    headers = {shard: read_header(directory / shard) for shard in complete_set(directory)}
    for name, shard in (_read_index(directory) or {}).items():
        if name not in headers[shard]:
            raise DataError(
                f"the base model's {INDEX} places {name[:100]!r} in {shard}, which does not have it",
                "Index and shards are of two models: put all of them there once more.",
            )
    return {name: tensor for header in headers.values() for name, tensor in header.items()}


def _read_index(directory: Path) -> dict[str, str] | None:
    path = directory / INDEX
    if not path.is_file():
        return None
    try:
        return _Index.model_validate_json(path.read_bytes()).weight_map
    except ValidationError as error:
        raise DataError(
            f"the base model's {INDEX} cannot be read: {error.errors()[0]['msg']}", "Put the file there once more."
        ) from error


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, once their bytes are seen to fill the file exactly.

    Raises:
        DataError: the file is cut off, damaged, or not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"of {size} bytes has no whole header")
        header = file.read(length)
    try:
        entries = orjson.loads(header)
        if isinstance(entries, dict):
            entries.pop("__metadata__", None)
        tensors = _TENSORS.validate_python(entries)
    except orjson.JSONDecodeError as error:
        raise _damaged(path, f"has a header that is not JSON ({error})") from error
    except ValidationError as error:
        raise _damaged(path, f"has a header that cannot be read ({error.errors()[0]['msg']})") from error
    _check_layout(path, tensors, size - 8 - length)
    return tensors


def _check_layout(path: Path, tensors: dict[str, Tensor], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave a gap, disagree with their shape, or end elsewhere than the file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        first, after = tensor.data_offsets
        if first != end or after - first != tensor.size:
            raise _damaged(path, f"has tensor {name[:100]!r} in the wrong place")
        end = after
    if end != data_bytes:
        raise _damaged(path, f"should hold {end} bytes of tensors and holds {data_bytes}")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path.name} {what}", "The file is cut off or damaged: put it there once more.")


def some(names: Collection[str]) -> str:
    """The first three of the names, sorted, and how many more there are."""
    first, rest = sorted(names)[:3], len(names) - 3
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
