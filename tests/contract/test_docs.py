"""docs/config.md and docs/schemas/ say what the models say."""

from docs.generate import DOCS, generated
from job.contract.config import RunConfig


def test_the_generated_docs_are_current() -> None:
    stale = [path.name for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text]
    assert stale == [], "make config-docs"


def test_no_schema_is_left_of_a_document_that_is_no_more() -> None:
    assert set((DOCS / "schemas").glob("*.json")) == {path for path in generated() if path.suffix == ".json"}


def test_every_key_is_explained() -> None:
    text = (DOCS / "config.md").read_text("utf-8")
    keys = [
        f"{section}.{key}"
        for section in ("dataset", "lora", "training", "samples", "export", "compute")
        for key in RunConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    ]
    assert len(keys) > 40
    for key in keys:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
        assert len(row.split(" | ")[-1]) > 10
