"""Finds the tokenizer of finished parts again: where the preparation found it, or where told to.

last_run.json records the directory, part.json the fingerprint. So the rows of a finished
preparation are shown without naming anything but their directory.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.dataset.part_facts import read_part_facts
from colossal_llama.dataset.part_paths import is_part
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.utils.checked_json import DamagedJsonError, read_checked
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.fetch import option_directory, origin_record
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import ModelName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DIRECTORY, _REPOSITORY = "tokenizer_dir", "tokenizer_repository"


def tokenizer_record(directory: Path) -> dict:
    """The entries of last_run.json about a preparation's tokenizer: its directory, its origin."""
    return {_DIRECTORY: str(directory.resolve()), **origin_record(directory, _REPOSITORY)}


def open_recorded_tokenizer(parts: Sequence[Path], given: Path | ModelName | None) -> "PreTrainedTokenizerFast":
    """Opens the tokenizer that made the parts.

    Args:
        parts: directories of parts, or data sets of other programs.
        given: the tokenizer that `--tokenizer_dir` names; None: the recorded one.

    Raises:
        UserError: it is not recorded, has gone, cannot be loaded, or is another than the parts'.
    """
    if given is None:
        directory = _recorded_directory(parts[0])
    else:
        directory = option_directory("--tokenizer_dir", given, Needed.TOKENIZER)
    try:
        tokenizer = load_tokenizer(directory)
    except UserError as error:
        hint = f"name a copy of {_name_of(parts[0])} by --tokenizer_dir"
        raise error if given is not None else UserError([*error.problems, hint]) from error
    recorded = [read_part_facts(part).tokenizer_fingerprint if is_part(part) else None for part in parts]
    found = tokenizer_fingerprint(tokenizer)
    if other := [part for part, known in zip(parts, recorded, strict=True) if known not in (None, found)]:
        reason = "has changed since, or is another one's" if given is None else "is another one"
        raise UserError(
            f"{other[0]} was made with another tokenizer: the one in {directory} {reason}; name the right one by "
            "--tokenizer_dir"
        )
    if None in recorded:
        unknown = parts[recorded.index(None)]
        log_rank_zero(f"{unknown} does not record its tokenizer: if the text is wrong, {directory} is another one")
    return tokenizer


def _recorded_directory(part: Path) -> Path:
    """The directory in which the preparation of a part found its tokenizer.

    Raises:
        UserError: it is not recorded, or has gone.
    """
    recorded = _last_run(part).get(_DIRECTORY)
    if not isinstance(recorded, str):
        reason = "an earlier version prepared it" if is_part(part) else "another program made it"
        raise UserError(f"{part}: where its tokenizer lies is not recorded ({reason}): name it by --tokenizer_dir")
    directory = Path(recorded)
    if not directory.is_dir():
        raise UserError(f"{_name_of(part)} is not there any more: give its new place, or a copy, as --tokenizer_dir")
    return directory


def _name_of(part: Path) -> str:
    """Names the recorded tokenizer, with the repository that it came from."""
    record = _last_run(part)
    origin = record.get(_REPOSITORY)
    repository = ""
    if isinstance(origin, dict) and isinstance(origin.get("repository"), str):
        with suppress(TypeError):
            repository = f" ({ModelName(**origin)})"
    return f"the tokenizer {record.get(_DIRECTORY)}{repository}"


def _last_run(part: Path) -> dict:
    """The report of a part's preparation; empty where it is missing, damaged, or elsewhere."""
    with suppress(OSError, DamagedJsonError):
        return read_checked(part.resolve().parent.parent / "last_run.json", {}) if is_part(part) else {}
    return {}
