"""Results of a model by key on disk: appended as they come, continued after a kill, then one file.

    OUT/MODEL/NAME.settings.json        what decides the results
    OUT/MODEL/NAME.partial-RANK.jsonl   results of a process, until all are there (PartialResults)
    OUT/MODEL/NAME.jsonl                all results, in order

A result that is on disk under the same settings is not computed again, by however many processes
and over however many inputs the command runs again.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import orjson

from colossal_llama.evaluation.partial_results import Append, PartialResults, read_results
from colossal_llama.utils.atomic_io import atomic_file, write_json
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

_ANOTHER = "give another --output_dir, or remove these files"
_FINGERPRINTS = ("model", "tokenizer")


class ResultFile:
    """The results of one kind, each a JSON object whose `key` is a text.

    Attributes:
        path: of all results.
    """

    def __init__(self, directory: Path, name: str, key: str, settings: Mapping[str, Any]):
        """Prepares the file; nothing is read or written.

        Args:
            directory: OUT/MODEL.
            name: of the file, without its ending.
            key: name of the value that tells results apart.
            settings: all that decides a result besides its input; JSON values.
        """
        self.path = directory / f"{name}.jsonl"
        self._partials = PartialResults(directory, name)
        self._name, self._key, self._settings = name, key, orjson.loads(orjson.dumps(settings))
        self._settings_path = directory / f"{name}.settings.json"

    def problem(self) -> str | None:
        """Explains why the results of this run cannot be kept here; None where they can."""
        if not self._settings_path.exists():
            there = self._written()
            return f"{there[0]} exists without {self._settings_path.name}: {_ANOTHER}" if there else None
        try:
            former = read_json_object(self._settings_path, _ANOTHER)
        except UserError as error:
            return str(error)
        names = [name for name in {**former, **self._settings} if former.get(name) != self._settings.get(name)]
        if not names:
            return None
        differing = "; ".join(_difference(name, former.get(name), self._settings.get(name)) for name in names)
        return f"{self._settings_path.parent} holds {self._name} of another run ({differing}): {_ANOTHER}"

    def begin(self) -> None:
        """Writes the settings of a run that begins.

        Raises:
            UserError: see `problem`.
        """
        if problem := self.problem():
            raise UserError(problem)
        self._settings_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._settings_path, self._settings)

    def read(self) -> dict[str, dict[str, Any]]:
        """Results by key, those of a run that was killed included; a line cut off is none."""
        return {
            key: result for _, result in read_results(self._written()) if isinstance(key := result.get(self._key), str)
        }

    def appending(self, rank: int) -> AbstractContextManager[Append]:
        """Opens the file of a process for its results (`PartialResults.appending`)."""
        return self._partials.appending(rank)

    def complete(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Writes all results into one file, and removes those of the processes."""
        with atomic_file(self.path) as file:
            for result in results:
                file.write(orjson.dumps(result) + b"\n")
        self._partials.remove()

    def _written(self) -> list[Path]:
        return [*([self.path] if self.path.exists() else []), *self._partials.paths()]


def _difference(name: str, former: Any, current: Any) -> str:
    return f"the {name} was another" if name in _FINGERPRINTS else f"{name} was {former}, now {current}"
