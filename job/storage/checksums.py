"""The checksums that S3 keeps with an object, as it writes them."""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import combine_crc32, combine_crc64nvme, crc64nvme

from job.contract.errors import ConfigError, DataError, UsageError


@dataclass(frozen=True)
class Checksum:
    """One algorithm, or none.

    Args:
        name: as S3 names it.
        width: bytes of a value; 0 for no checksum.
        of: bytes, and the value of what came before them, to the value of both.
        combine: the values of two neighbours, and the second's length, to the value of both.
        whole: whether S3 keeps one value over an object sent in parts, rather than one over its parts' values.
    """

    name: str
    width: int
    of: Callable[[bytes, int], int]
    combine: Callable[[int, int, int], int]
    whole: bool

    def text(self, value: int) -> str:
        """As S3 writes it: base64 of the big-endian bytes."""
        return base64.b64encode(value.to_bytes(self.width, "big")).decode()

    def joined(self, values: Sequence[int], sizes: Sequence[int]) -> int:
        """The value over parts in their order, from the parts' own values and sizes."""
        total = 0
        for value, size in zip(values, sizes, strict=True):
            total = self.combine(total, value, size)
        return total

    def text_of_parts(self, values: Sequence[int], sizes: Sequence[int]) -> str:
        """As S3 writes it for an object sent in parts."""
        if self.whole:
            return self.text(self.joined(values, sizes))
        of_values = self.of(b"".join(value.to_bytes(self.width, "big") for value in values), 0)
        return f"{self.text(of_values)}-{len(values)}"

    def announced(self) -> dict[str, Any]:
        """What a request that begins an upload in parts says of it."""
        kind = {"ChecksumType": "FULL_OBJECT"} if self.whole else {}
        return {"ChecksumAlgorithm": self.name, **kind} if self.width else {}

    def sent(self, value: int) -> dict[str, Any]:
        """What a request carries with its body."""
        return {f"Checksum{self.name}": self.text(value)} if self.width else {}

    def confirm(self, stated: str | None, text: str, uri: str) -> None:
        """See that the store states the value that we computed.

        Raises:
            ConfigError: the store keeps no such checksums.
            DataError: it states another.
        """
        if not self.width or stated == f"{self.name}:{text}":
            return
        if stated is None:
            raise ConfigError(
                f"{uri}: the store did not confirm the {self.name} of what was sent",
                "Set FINETUNE_S3_CHECKSUM=CRC32, or none for a store that keeps no checksums.",
            )
        raise DataError(
            f"{uri} arrived damaged: {self.name}:{text} was sent, the store has {stated}", "Start it again."
        )


CRC64NVME = Checksum("CRC64NVME", 8, crc64nvme, combine_crc64nvme, whole=True)
CRC32 = Checksum("CRC32", 4, zlib.crc32, combine_crc32, whole=False)
NO_CHECKSUM = Checksum("none", 0, lambda _body, _before: 0, lambda _first, _second, _size: 0, whole=True)

_KEPT = (CRC64NVME, CRC32)


def chosen(setting: str) -> Checksum:
    """The checksum of that name.

    Raises:
        UsageError: when there is none of that name.
    """
    for checksum in (*_KEPT, NO_CHECKSUM):
        if setting.upper() == checksum.name.upper():
            return checksum
    raise UsageError(f"FINETUNE_S3_CHECKSUM={setting} is not one", "Write CRC64NVME, CRC32 or none.")


def stated(answer: Mapping[str, object]) -> str | None:
    """The checksum that an answer of S3 carries, as `Stat.checksum` has it; None where it carries none that we know."""
    for checksum in _KEPT:
        if value := answer.get(f"Checksum{checksum.name}"):
            return f"{checksum.name}:{value}"
    return None


def of_content(stated: str | None) -> tuple[Checksum, str]:
    """The algorithm and the text of a stated checksum that is the content's own; `NO_CHECKSUM` for any other."""
    name, _, text = (stated or "").partition(":")
    if "-" in text:  # one over the parts' values
        return NO_CHECKSUM, ""
    return next(((checksum, text) for checksum in _KEPT if checksum.name == name), (NO_CHECKSUM, ""))
