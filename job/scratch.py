"""Where things lie on scratch, one directory for each run."""

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scratch:
    """A run's own directory on the scratch disk. Nothing in it outlives the attempt."""

    root: Path

    @property
    def base_model(self) -> Path:
        """The base model. Not named after it: Unsloth reads meaning into endings such as `-bf16`."""
        return self.root / "inputs" / "base"

    @property
    def dataset(self) -> Path:
        """The dataset's files as they were fetched."""
        return self.root / "inputs" / "dataset"

    @property
    def rows(self) -> Path:
        """The prepared rows."""
        return self.root / "rows"

    @property
    def tokenizer(self) -> Path:
        """The base's tokenizer with the config's chat template."""
        return self.root / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """Whole checkpoints, as training leaves them."""
        return self.root / "checkpoints"

    @property
    def uploads(self) -> Path:
        """Checkpoints on their way to the store."""
        return self.root / "uploads"

    @property
    def resumed(self) -> Path:
        """The checkpoint that training goes on from."""
        return self.root / "resumed"

    @property
    def stop(self) -> Path:
        """A file that asks training to end at the next step's end."""
        return self.root / "stop"

    @property
    def trainer(self) -> Path:
        """The trainer's own output, kept by nobody."""
        return self.root / "trainer"

    @property
    def adapter(self) -> Path:
        """The adapter as training left it: it names the base by its local path."""
        return self.root / "adapter"

    @property
    def lora(self) -> Path:
        """The adapter as it is published."""
        return self.root / "publish" / "lora"

    @property
    def merged(self) -> Path:
        """The merged model."""
        return self.root / "publish" / "merged"

    @property
    def gguf(self) -> Path:
        """The GGUF files and the Modelfile."""
        return self.root / "publish" / "gguf"

    @property
    def report(self) -> Path:
        """What a person looks at."""
        return self.root / "publish" / "report"

    @property
    def plan(self) -> Path:
        """What the children are told."""
        return self.root / "plan.json"

    @property
    def events(self) -> Path:
        """The pipe that children write to."""
        return self.root / "events"

    @property
    def work(self) -> Path:
        """The children's working directory: Unsloth writes some files relative to it."""
        return self.root / "work"

    @property
    def home(self) -> Path:
        """The children's home, caches and temporary files."""
        return self.root / "home"

    def prepare(self) -> None:
        """Makes it empty: what an earlier start left there is worth nothing."""
        shutil.rmtree(self.root, ignore_errors=True)
        whole = (self.checkpoints, self.uploads, self.report, self.rows, self.trainer)
        for directory in (self.work, self.home / "tmp", *whole):
            directory.mkdir(parents=True)
