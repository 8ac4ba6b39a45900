"""Work of some ranks that may take hours, while all ranks keep meeting."""

import traceback
from collections.abc import Callable
from threading import Thread

from colossal_llama.training.distributed import consensus
from colossal_llama.utils.errors import UserError


def work_while_others_wait(work: Callable[[], object] | None) -> None:
    """Runs some ranks' work, which may take hours, while all ranks keep meeting; a collective.

    Args:
        work: None on the ranks that have none.

    Raises:
        CollectiveError: the work failed on some rank.
        Stopped: a rank has received a signal.
    """
    problems: list[str] = []

    def run() -> None:
        """Does the work of this rank, and keeps what goes wrong for all ranks."""
        try:
            if work is not None:
                work()
        except UserError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except Exception as error:
            traceback.print_exc()
            problems.append(f"{type(error).__name__}: {error}")

    thread = Thread(target=run, daemon=True)  # a signal that ends the run does not wait for it
    thread.start()

    def is_done(seconds: float) -> bool:
        thread.join(seconds)
        return not thread.is_alive()

    consensus.wait_on_all_ranks(is_done, on_wait=lambda: consensus.raise_problems([]))
    consensus.raise_problems(problems)
