"""Lineage of a model: the runs that made it, oldest first, with their data and losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.dataset.part_paths import find_parts
from colossal_llama.export.found_records import FoundRecords, find_records, read_steps
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, step_of_checkpoint
from colossal_llama.training.record_files import METRICS_FILE
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_LEVELS_WITHOUT_NAMED_RECORDS = 2


@dataclass(frozen=True)
class Stage:
    """A run.

    Attributes:
        configuration: its `--config_file`; empty where it was not found.
        metrics: entries of metrics.jsonl up to the step of the model.
        manifests: of the data, each with the names of the parts that were used.
    """

    configuration: Mapping[str, Any]
    metrics: tuple[dict[str, Any], ...] = ()
    manifests: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = ()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The options of the run."""
        return self.configuration.get("arguments", {})


@dataclass(frozen=True)
class Lineage:
    """Lineage of a model: the runs that made it, as far as their records are found.

    Attributes:
        stages: runs, oldest first.
        base: the model that the first of them began with; None: not recorded.
        directories: of the models on the way, for licences.
        records: all that was found.
    """

    stages: tuple[Stage, ...]
    base: str | None
    directories: tuple[Path, ...]
    records: FoundRecords = field(repr=False)


def trace_lineage(model: Path, record_directories: tuple[Path, ...]) -> Lineage:
    """Follows a model back through the records of its runs.

    Args:
        model: directory of the model or adapter.
        record_directories: `--records`; empty: those around the run are searched.
    """
    run = run_directory(model)
    around = record_directories or ((model,) if run is None else (run.parent.parent, run.parent, run))
    records = find_records(around, _LEVELS_WITHOUT_NAMED_RECORDS + 1 if not record_directories else 4)
    stages: list[Stage] = []
    base: str | None = None
    seen: list[Path] = []
    while run is not None and run not in seen:
        seen.append(run)
        configuration = _configuration_of(run, records, is_only_one_enough=bool(record_directories) and not stages)
        stages.append(_stage(run, configuration, records, _step_of(model)))
        base = _began_with(configuration)
        model = _resolve(base, configuration, run) if base else Path()
        run = run_directory(model) if base else None
    if not stages:
        model = model.resolve()
    return _with_initialisation(tuple(reversed(stages)), base, model, records)


def run_directory(model: Path) -> Path | None:
    """The save directory of the run that a model is of; None where its name is no run's."""
    path = model.resolve()
    if path.name not in (MODEL, MERGED_MODEL):
        return None
    return path.parent.parent if step_of_checkpoint(path.parent.name) is not None else path.parent


def _step_of(model: Path) -> int | None:
    return step_of_checkpoint(model.resolve().parent.name)


def _configuration_of(run: Path, records: FoundRecords, is_only_one_enough: bool) -> dict[str, Any]:
    """The configuration whose `--save_dir` is the run's directory; empty where there is none."""
    found = list(records.configurations.values())
    matching = [content for content in found if _is_path_of(content["arguments"].get("save_dir"), run)]
    if not matching and is_only_one_enough and len(found) == 1:
        matching = found
    if not matching:
        names = f"none of {len(found)} run configurations" if found else "no run configuration"
        log_rank_zero(
            f"model card: {names} was found for the run {run.name}: give --records DIR with its --config_file"
        )
        return {}
    return max(matching, key=lambda content: content.get("started_s", 0))


def _is_path_of(text: Any, directory: Path) -> bool:
    """True when a path of a command line, perhaps relative to an unknown directory, may be it."""
    if not isinstance(text, str):
        return False
    parts = Path(text).parts
    return directory.parts[-len(parts) :] == parts


def _resolve(text: str, configuration: Mapping[str, Any], run: Path) -> Path:
    """A path of the run's command line; a relative one from where the run was started."""
    save_dir = Path(configuration["arguments"].get("save_dir") or "")
    if Path(text).is_absolute() or save_dir.is_absolute():
        return Path(text)
    return run.parents[len(save_dir.parts) - 1] / text if save_dir.parts else Path(text)


def _began_with(configuration: Mapping[str, Any]) -> str | None:
    arguments = configuration.get("arguments", {})
    loaded = arguments.get("load_checkpoint")
    if isinstance(loaded, str) and Path(loaded).name in (MODEL, MERGED_MODEL):
        return loaded
    return arguments.get("pretrained")


def _stage(run: Path, configuration: dict[str, Any], records: FoundRecords, step: int | None) -> Stage:
    directories = [path for path, save_dir in records.metrics.items() if _is_path_of(save_dir, run)]
    named = configuration.get("arguments", {}).get("tensorboard_dir")
    if named:
        directories.insert(0, _resolve(named, configuration, run))
    metrics: list[dict[str, Any]] = []
    for directory in directories:
        if (directory / METRICS_FILE).is_file():
            metrics = read_steps(directory / METRICS_FILE)
            break
    kept = tuple(entry for entry in metrics if step is None or entry.get("step", 0) <= step)
    return Stage(configuration, kept, tuple(_manifests(run, configuration, records)))


def _manifests(
    run: Path, configuration: dict[str, Any], records: FoundRecords
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """The manifests of the parts, each with the names of those that the run used."""
    used: dict[Path, list[str]] = {}
    for part in _parts_of(configuration, run):
        prepared = part.parent.parent / "manifest.json"
        if prepared.is_file():
            records.add(prepared)
            path = prepared.resolve()
        else:  # moved: told by the name of its directory
            names = (file for file in records.manifests if file.parent.name == part.parent.parent.name)
            path = next(names, Path())
        if path in records.manifests:
            used.setdefault(path, []).append(part.name)
    return [(records.manifests[path], tuple(names)) for path, names in used.items()]


def _parts_of(configuration: Mapping[str, Any], run: Path) -> Sequence[Path]:
    """The parts of a run; earlier versions recorded what the command line gave, and no more."""
    if recorded := configuration.get("parts"):
        return [_resolve(text, configuration, run) for text in recorded]
    given = configuration.get("arguments", {}).get("dataset") or ()
    paths = [_resolve(text, configuration, run) for text in given]
    try:
        return find_parts(paths, "--dataset").paths
    except UserError:  # moved or deleted since
        return paths


def _with_initialisation(stages: tuple[Stage, ...], base: str | None, model: Path, records: FoundRecords) -> Lineage:
    """Adds what init_model recorded in the directory of the first model."""
    directories = [model] if model.parts and model.is_dir() else []
    for name in ("init_report.json", "expansion_report.json"):
        for directory in directories:
            if (directory / name).is_file():
                records.add(directory / name)
    report = records.initialisations.get(model.resolve() / "init_report.json") if directories else None
    if report is None and base is not None:
        moved = (file for file in records.initialisations if file.parent.name == Path(base).name)
        report = records.initialisations.get(next(moved, Path()))
    if report is not None:
        base = report["source_model_and_tokenizer_path"]
        directories.append(Path(base))
    return Lineage(stages, base, tuple(path for path in directories if path.is_dir()), records)
