"""What the demo is made of: its rows, its rule, its server and its base model."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import boto3
import pytest
import tokenizers
from gguf import GGUFReader

from examples.demo.base_model import GGUF, write_tokenizer
from examples.demo.data import HELD_OUT, jsonl, rows
from examples.demo.score import is_in_format
from examples.demo.server import s3_server


def runs_of_three_words(text: str) -> set[tuple[str, ...]]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}


def test_the_rows_are_240_and_always_the_same() -> None:
    lines = jsonl().splitlines()
    assert len(lines) == len(set(lines)) == 240
    assert jsonl().splitlines() == lines
    assert [json.loads(line) for line in lines] == rows()


def test_held_out_prompts_share_no_text_with_the_rows() -> None:
    trained = runs_of_three_words("\n".join(jsonl().splitlines()))
    assert len(HELD_OUT) == 10
    assert all(len(runs_of_three_words(prompt)) >= 3 for prompt in HELD_OUT)
    assert [prompt for prompt in HELD_OUT if runs_of_three_words(prompt) & trained] == []


def test_every_row_answers_in_the_format() -> None:
    answers = [json.loads(line)["conversations"][-1]["value"] for line in jsonl().splitlines()]
    assert all(map(is_in_format, answers))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Paris",
        '{"topic": "capital", "answer": "Paris"} and more',
        '{"topic": "capital"}',
        '{"topic": "capital", "answer": ""}',
        '{"topic": "capital", "answer": 7}',
        '{"topic": "capital", "answer": "Paris", "sure": "yes"}',
        '["topic", "answer"]',
        '{"topic": "capital", "answer": "Par',
    ],
)
def test_nothing_else_is_in_the_format(answer: str) -> None:
    assert not is_in_format(answer)


def test_the_tokenizer_is_that_of_the_gguf(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fields = GGUFReader(GGUF).fields
    settings = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert tokenizer.token_to_id(settings["eos_token"]) == fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert (tmp_path / "chat_template.jinja").read_text() == fields["tokenizer.chat_template"].contents()

    from llama_cpp import Llama

    llama = Llama(str(GGUF), vocab_only=True, verbose=False)
    for text in (jsonl(), "<|im_start|>user\n1234 + 5.6?<|im_end|>\n", "ü 🦙 \t\n\n  don't I'LL", "汉字 12,345"):
        expected = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected
    llama.close()


def commands() -> list[str]:
    """The command line of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:  # it has just ended
            continue
    return found


def is_served_from(directory: Path) -> bool:
    return any(str(directory) in command for command in commands())


def test_a_server_serves_what_the_last_one_kept_and_leaves_no_process(tmp_path: Path) -> None:
    for number in range(2):
        with s3_server(tmp_path, "demo") as server:
            variables = server.environment
            store = boto3.client(
                "s3",
                endpoint_url=server.endpoint,
                region_name=variables["AWS_REGION"],
                aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            )
            kept = store.list_objects_v2(Bucket="demo").get("Contents", [])
            assert [item["Key"] for item in kept] == [f"{earlier}" for earlier in range(number)]
            store.put_object(Bucket="demo", Key=str(number), Body=b"kept")
            assert is_served_from(tmp_path)
            with pytest.raises(RuntimeError, match="another server runs"), s3_server(tmp_path, "demo"):
                pass
        assert not is_served_from(tmp_path)


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from examples.demo.server import s3_server
        with s3_server(Path({str(tmp_path)!r}), "demo"):
            print("ready", flush=True)
            time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert is_served_from(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_served_from(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "filerldb2").write_text("no folder")
    with pytest.raises(RuntimeError, match="does not answer"), s3_server(tmp_path, "demo"):
        pass
