"""Checksums as S3 writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.errors import ConfigError, DataError
from job.storage.checksums import CRC32, CRC64NVME, NO_CHECKSUM, Checksum, chosen, of_content, stated

KINDS = pytest.mark.parametrize("checksum", [CRC64NVME, CRC32], ids=lambda checksum: checksum.name)


@pytest.mark.parametrize(("checksum", "text"), [(CRC64NVME, "rosUhgp5mIg="), (CRC32, "y/Q5Jg==")])
def test_the_check_value_of_each_algorithm(checksum: Checksum, text: str) -> None:
    """`123456789`, as in the catalogue of parametrised CRC algorithms."""
    assert checksum.text(checksum.of(b"123456789", 0)) == text


@KINDS
@given(parts=st.lists(st.binary(), min_size=1, max_size=5))
def test_the_values_of_parts_join_to_that_of_the_whole(checksum: Checksum, parts: list[bytes]) -> None:
    values = [checksum.of(part, 0) for part in parts]
    assert checksum.joined(values, [len(part) for part in parts]) == checksum.of(b"".join(parts), 0)
    running = 0
    for part in parts:
        running = checksum.of(part, running)
    assert running == checksum.of(b"".join(parts), 0)


@KINDS
def test_only_the_very_value_is_a_confirmation(checksum: Checksum) -> None:
    text = checksum.text(checksum.of(b"body", 0))
    answer = {"ETag": "x", f"Checksum{checksum.name}": text}
    assert of_content(stated(answer)) == (checksum, text)
    checksum.confirm(stated(answer), text, "s3://b/k")
    with pytest.raises(ConfigError, match="did not confirm"):
        checksum.confirm(stated({"ETag": "x"}), text, "s3://b/k")
    with pytest.raises(DataError, match="s3://b/k arrived damaged"):
        checksum.confirm(stated(answer), checksum.text(0), "s3://b/k")


def test_a_checksum_of_checksums_says_nothing_of_the_content() -> None:
    assert of_content("CRC32:y/Q5Jg==-3") == of_content(None) == of_content("SHA256:x") == (NO_CHECKSUM, "")


def test_without_checksums_nothing_is_sent_or_asked_for() -> None:
    none = chosen("None")
    assert none.sent(none.of(b"body", 0)) == none.announced() == {}
    none.confirm(None, none.text_of_parts([0, 0], [1, 2]), "s3://b/k")
