"""README.md says what the code says."""

import re
from pathlib import Path

from job.contract.exits import IGNORED_CODES, RETRIED_CODES, Exit
from job.settings import _parser

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def test_the_table_of_exit_codes_is_the_contracts() -> None:
    rows = {
        int(code): (name, end) for code, name, end in re.findall(r"^\| (\d+) \| (\w+) \| .+ \| (.+) \|$", README, re.M)
    }
    assert {code: name for code, (name, _) in rows.items()} == {code.value: code.name for code in Exit}
    for code, (_, end) in rows.items():
        expected = (
            "completes" if code == Exit.OK else "tries again" if code in RETRIED_CODES | IGNORED_CODES else "fails"
        )
        assert end.startswith(expected), code


def test_every_flag_is_listed() -> None:
    flags = re.findall(r"--[a-z-]+", _parser().format_help())
    assert set(re.findall(r"^\| `(--[a-z-]+)` \|", README, re.M)) == set(flags) - {"--help"}


def test_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 4
    assert [link for link in links if not (Path(__file__).parents[2] / link).exists()] == []
