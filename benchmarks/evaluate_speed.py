"""Measures how fast benchmarks are answered, and how fast lm-evaluation-harness does it.

    python benchmarks/evaluate_speed.py --shape 7B --tokenizer DIR --data_dir DIR --tasks mmlu \
        --harness_questions 8 --output speed.json
    python benchmarks/evaluate_speed.py --shape tiny        # made questions, for a trial

The model has random weights: the time is that of any model of its shape, and a generated answer is
as long as it may be. Times have all from the prompts' texts on, tokenization included; a first
batch has warmed up the device.

The harness (on PYTHONPATH, `--harness_questions` of each subject of the first task) is given the
same model object, tokenizer and prompts, with the continuations ` A` to ` D`, of which it computes
one pass a question. Its batch is what its `auto` finds; the time of the search is not counted.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.random_run import SHAPES
from colossal_llama.evaluation import published
from colossal_llama.evaluation.packed_model import PackedModel
from colossal_llama.evaluation.prompts import PromptEncoder, prompt_texts
from colossal_llama.evaluation.questions import FIRST_TOKEN, Example, Question, Subject
from colossal_llama.evaluation.scoring import Scorer
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.atomic_io import write_json

LETTERS = ("A", "B", "C", "D")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    """Measures, prints and writes."""
    options = parse()
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else made_tokenizer()
    subjects = made_subjects() if options.data_dir is None else read_subjects(options)
    model = random_model(options, len(tokenizer))
    figures: dict[str, Any] = {
        "shape": options.shape,
        "parameters": model.num_parameters(),
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "max_length": options.max_length,
        "slow_attention_reason": PackedModel(model).slow_attention_reason(),
    }
    scorer, encoder = Scorer(model, options.tokens_per_batch), PromptEncoder(tokenizer)
    with_few = replace(subjects[0], questions=subjects[0].questions[:16])
    list(published.predictions(with_few, scorer, encoder, options.max_length))
    for task in dict.fromkeys(subject.task for subject in subjects):
        of_task = [subject for subject in subjects if subject.task == task]
        figures[task] = measure_ours(of_task, scorer, encoder, options.max_length)
        print(f"ours, {task}: {figures[task]}", flush=True)
    if options.harness_questions:
        first = [subject for subject in subjects if subject.task == subjects[0].task]
        few = [replace(subject, questions=subject.questions[: options.harness_questions]) for subject in first]
        figures["ours_on_few"] = measure_ours(few, scorer, encoder, options.max_length)
        figures["harness_on_few"] = measure_harness(few, model, encoder, options.max_length)
        speed, theirs = (each["questions_per_s"] for each in (figures[first[0].task], figures["harness_on_few"]))
        figures["ratio"] = round(speed / theirs, 2)
        print(f"harness: {figures['harness_on_few']}\nours: {figures['ratio']} times as many questions a second")
    if options.output:
        write_json(options.output, figures)


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="7B", help="of the random model")
    parser.add_argument("--tokenizer", type=Path, help="directory (default: a made tokenizer of words)")
    parser.add_argument("--data_dir", type=Path, help="as of evaluate.py (default: made questions)")
    parser.add_argument("--tasks", nargs="+", default=["mmlu"], help="tasks of --data_dir")
    parser.add_argument("--limit", type=int, help="first questions of each subject")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if on_gpu else "fp32")
    parser.add_argument("--device", default="cuda:0" if on_gpu else "cpu")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--tokens_per_batch", type=int, help="default: evaluate.py's")
    parser.add_argument("--harness_questions", type=int, default=0, help="of each subject, for the harness; 0: none")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def random_model(options: argparse.Namespace, vocabulary_size: int) -> LlamaForCausalLM:
    """A LLaMA of the shape, whose layers keep the size of what they are given."""
    config = LlamaConfig(vocab_size=max(32_000, vocabulary_size), max_position_embeddings=4096, **SHAPES[options.shape])
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[options.dtype])
    with torch.device(options.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def read_subjects(options: argparse.Namespace) -> list[Subject]:
    """The subjects of the tasks."""
    return open_tasks(options.tasks, options.data_dir, (), options.limit)


def made_subjects(subjects: int = 3, questions: int = 30) -> list[Subject]:
    """Questions of made words, about as long as MMLU's."""
    source = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(f"w{int(word)}" for word in torch.randint(30_000, (count,), generator=source))

    def text() -> str:
        return "\n".join([f"Question: {words(50)}", *(f"{letter}. {words(10)}" for letter in LETTERS), "Answer: "])

    return [
        Subject(
            task="made",
            name=f"subject {number}",
            group="",
            file="",
            opening=words(12),
            examples=tuple(Example(text(), "A") for _ in range(5)),
            questions=tuple(Question(index, text(), "B", LETTERS) for index in range(questions)),
            scored_by=FIRST_TOKEN,
        )
        for number in range(subjects)
    ]


def made_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    words = ["<unk>", "<s>", "</s>", "Question:", "Answer:", *LETTERS, ".", *(f"w{number}" for number in range(30_000))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def measure_ours(
    subjects: Sequence[Subject], scorer: Scorer, encoder: PromptEncoder, max_length: int
) -> dict[str, Any]:
    """Answers all questions by the published protocol."""
    reset_peak()
    began, questions, tokens = time.perf_counter(), 0, 0
    for subject in subjects:
        for prediction in published.predictions(subject, scorer, encoder, max_length):
            questions, tokens = questions + 1, tokens + prediction.prompt_tokens
    return result(began, questions, tokens)


def measure_harness(
    subjects: Sequence[Subject], model: LlamaForCausalLM, encoder: PromptEncoder, max_length: int
) -> dict[str, Any]:
    """Scores ` A` to ` D` behind the same prompts by lm-evaluation-harness."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def requests(texts: Sequence[str]) -> list[Any]:
        pairs = [(text, f" {letter}") for text in texts for letter in LETTERS]
        return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]

    texts = [
        text.rstrip()
        for subject in subjects
        for text in prompt_texts(subject, [q for q in subject.questions if q.is_scored], encoder, max_length)
    ]
    shared = {"pretrained": model, "tokenizer": encoder.tokenizer, "backend": "causal", "max_length": max_length}
    finder = HFLM(**shared, batch_size="auto")
    finder.loglikelihood(requests([max(texts, key=len)]), disable_tqdm=True)
    batch_size = next(iter(finder.batch_sizes.values()))
    harness = HFLM(**shared, batch_size=batch_size)
    reset_peak()
    began = time.perf_counter()
    found = harness.loglikelihood(requests(texts), disable_tqdm=True)
    tokens = sum(map(len, encoder.encode(texts)))
    assert len(found) == len(texts) * len(LETTERS)
    return {**result(began, len(texts), tokens), "batch_size": batch_size}


def result(began: float, questions: int, prompt_tokens: int) -> dict[str, Any]:
    """Figures of what has been answered since."""
    duration_s = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {
        "questions": questions,
        "prompt_tokens": prompt_tokens,
        "duration_s": round(duration_s, 2),
        "questions_per_s": round(questions / duration_s, 2),
        "prompt_tokens_per_s": round(prompt_tokens / duration_s),
        "peak_memory_gib": peak and round(peak, 1),
    }


def reset_peak() -> None:
    """Begins to count the peak memory anew."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
