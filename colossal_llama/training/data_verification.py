"""Verification of parts in the background: begun when they are opened, awaited before a step."""

import os
import threading
import time
from collections.abc import Mapping, Sequence

from colossal_llama.dataset.part import Part
from colossal_llama.dataset.part_content import check_content
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_MOST_THREADS = 8
"""Each reads about 0.5 GB/s with the checksum, 2.5 GB/s without."""


class DataVerification:
    """Reads all parts to the end, in threads of the first process of each host.

    Hashing and the comparisons of NumPy leave Python's lock to the other threads. They are daemons:
    a run that fails in the meantime does not wait for them.
    """

    def __init__(
        self,
        parts_by_option: Mapping[str, Sequence[Part]],
        tokenizer_ids: int,
        embedding_rows: int,
        compare_checksums: bool,
    ):
        """Begins to read.

        Args:
            parts_by_option: the parts, by the option that names them.
            tokenizer_ids: number of ids of the tokenizer, for parts that were prepared with it.
            embedding_rows: number of ids that the model has, for parts that name no tokenizer.
            compare_checksums: False checks the values alone (`--verify_data False`).
        """
        self._tokenizer_ids, self._embedding_rows = tokenizer_ids, embedding_rows
        self._compare_checksums = compare_checksums
        parts = [
            (option, part) for option, given in parts_by_option.items() for part in given if part.needs_verification
        ]
        self._report(parts)
        self._problems: dict[int, list[str]] = {}
        self._failure: BaseException | None = None
        self._has_said_that_it_waits = False
        self._todo = list(enumerate(parts))[::-1] if os.environ.get("LOCAL_RANK", "0") == "0" else []
        self._lock = threading.Lock()
        count = min(len(self._todo), _MOST_THREADS, max(1, (os.cpu_count() or 1) // 2))
        self._threads = [threading.Thread(target=self._run, name="verify data", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits for the verification on all hosts; a collective.

        Raises:
            CollectiveError: parts are damaged; every one of them is named.
        """
        consensus.wait_on_all_ranks(self._is_done, self._say_that_it_waits)
        with consensus.raise_on_all_ranks():
            if self._failure is not None:
                raise self._failure
            problems = [problem for index in sorted(self._problems) for problem in self._problems[index]]
            if problems:
                raise UserError(problems)

    def _report(self, parts: Sequence[tuple[str, Part]]) -> None:
        if not self._compare_checksums:
            log_rank_zero("the checksums of the data are not compared (--verify_data False)")
            return
        without = [part.path for _, part in parts if part.facts.arrow_sha256 is None]
        if without:
            log_rank_zero(
                f"{len(without)} of {len(parts)} parts record no checksum ({without[0]}{' …' * (len(without) > 1)}): "
                "their values are checked, but a changed one may go unnoticed"
            )

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._todo or self._failure is not None:
                    return
                index, (option, part) = self._todo.pop()
            try:
                vocabulary = self._embedding_rows if part.tokenizer_fingerprint is None else self._tokenizer_ids
                check_content(list(part.files), part.rules(vocabulary, self._compare_checksums))
            except UserError as error:
                self._problems[index] = [f"{option}: {problem}" for problem in error.problems]
            except BaseException as error:  # raised again by `finish`
                self._failure = error

    def _is_done(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _say_that_it_waits(self) -> None:
        if not self._has_said_that_it_waits:
            self._has_said_that_it_waits = True
            log_rank_zero("the first step waits until the data are read and compared with their checksums …")
