"""A GGUF file asked by libllama, as any of its users would."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama_cpp import Llama

from job.machine import read_machine


def answers(model: Path, prompts: Sequence[str], max_tokens: int = 48) -> Iterator[str]:
    """The model's greedy answer to each prompt, rendered by the chat template that the file carries."""
    threads = read_machine().usable_cpus
    llama = Llama(str(model), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        llama.metadata["tokenizer.chat_template"]
    )
    for prompt in prompts:
        text = template.render(messages=[{"role": "user", "content": prompt}], add_generation_prompt=True)
        completion = llama.create_completion(text, max_tokens=max_tokens, temperature=0, repeat_penalty=1)
        yield completion["choices"][0]["text"].strip()
    llama.close()
