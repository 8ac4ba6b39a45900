"""Programs that open what the suite writes: each with its environment and its script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients.environment import client_environment
from benchmarks.clients.models import TriedModel, run_script

TRANSFORMERS_5 = ("transformers==5.24.0", "peft==0.21.2")
LLAMA_CPP = ("xllamacpp==2026.10.11549", "gguf==0.19.0")


def _as_it_is(model: TriedModel, work: Path) -> Path:
    return model.directory


def _as_gguf(model: TriedModel, work: Path) -> Path:
    """The model as a GGUF file, written once by `export_model`, which needs the package gguf."""
    target = work / "gguf" / model.name.replace(" ", "-")
    if not target.exists():
        options = ("--output_dir", target, "--gguf", "f16")
        python = client_environment("llama_cpp", LLAMA_CPP)
        run_script("-m", "colossal_llama", "export_model", "--model_path", model.directory, *options, python=python)
    (file,) = target.glob("*.gguf")
    return file


@dataclass(frozen=True)
class Client:
    """A program of others.

    Attributes:
        name: of its environment.
        title: in the table.
        requirements: of its environment, pinned.
        script: in this directory; see `transformers_client.py`.
        opens: which models it can open.
        prepare: gives the path that it opens, for a model and the work directory.
        unresolved: requirements that are installed without what they ask for.
        requests: the files that it gets, without their ending (see `write_requests`).
    """

    name: str
    title: str
    requirements: Sequence[str]
    script: str
    opens: Callable[[TriedModel], bool] = lambda model: True
    prepare: Callable[[TriedModel, Path], Path] = _as_it_is
    unresolved: Sequence[str] = ()
    requests: Sequence[str] = ("texts", "prompts", "conversations")


CLIENTS = {
    client.name: client
    for client in (
        Client("transformers5", "transformers 5", TRANSFORMERS_5, "transformers_client.py"),
        Client(
            "sentencepiece",
            "sentencepiece",
            ("sentencepiece==0.2.3",),
            "sentencepiece_client.py",
            opens=lambda model: model.sentencepiece,
            requests=("texts",),
        ),
        Client(
            "peft",
            "PEFT",
            TRANSFORMERS_5,
            "peft_client.py",
            opens=lambda model: model.is_adapter,
            requests=(),
        ),
        Client(
            "ctranslate2",
            "CTranslate2",
            ("ctranslate2==4.8.5", "transformers==5.24.0"),
            "ctranslate2_client.py",
            opens=lambda model: not model.is_adapter,
            requests=("prompts",),
        ),
        Client(
            "llama_cpp",
            "llama.cpp",
            LLAMA_CPP,
            "llama_cpp_client.py",
            opens=lambda model: not model.is_adapter,
            prepare=_as_gguf,
        ),
        Client(
            "lm_eval",
            "lm-evaluation-harness",
            ("lm_eval==0.4.13",),
            "lm_eval_client.py",
            requests=("texts", "contexts", "pairs", "conversations"),
        ),
        Client(
            "trl",
            "TRL",
            ("trl==1.16.0", "transformers==5.24.0"),
            "trl_client.py",
            opens=lambda model: model.data is not None and not model.is_adapter,
            requests=("trained",),
        ),
    )
}
"""By name."""
