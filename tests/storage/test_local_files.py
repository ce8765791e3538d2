"""Files that are whole or not there, and keys that stay below their root."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.errors import ConfigError, DataError, JobError, LocalIOError, NoInputError, PermissionDenied
from job.storage.directory import DirectoryStorage
from job.storage.local_files import local_errors, whole_file
from job.storage.names import checked_key


def test_a_file_is_not_there_before_its_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep/file"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
        assert list(DirectoryStorage(tmp_path).list("")) == []
    assert path.read_bytes() == b"new"


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, LocalIOError),
        (errno.EDQUOT, LocalIOError),
        (errno.EIO, LocalIOError),
        (errno.ENOENT, NoInputError),
        (errno.EACCES, PermissionDenied),
        (errno.EROFS, PermissionDenied),
        (errno.ENOTSUP, ConfigError),
    ],
)
def test_an_error_of_the_disk_has_its_kind(number: int, kind: type[JobError], tmp_path: Path) -> None:
    with pytest.raises(kind, match=str(tmp_path)) as caught, local_errors(tmp_path):
        raise OSError(number, "so it says")
    assert caught.value.resolution


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(LocalIOError, match="No space left"), local_errors(tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"x")


@given(
    st.lists(st.sampled_from(["a", "..", ".", "", "b\n", "\0", "\x85", "\u2028", "ü", "%2F", "a b"]), max_size=4).map(
        "/".join
    )
    | st.text()
)
def test_a_key_that_is_taken_stays_below_its_root_and_on_its_line(key: str) -> None:
    try:
        checked_key(key, "/root")
    except DataError:
        return
    assert Path("/srv/x", key).resolve().is_relative_to("/srv/x/")
    assert Path("/srv/x", key).resolve() != Path("/srv/x")
    assert key.splitlines() == [key]
