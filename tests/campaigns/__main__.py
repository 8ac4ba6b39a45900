"""Runs one campaign by hand: prints a table by kind, and writes a line a trial."""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from pathlib import Path

from tests.campaigns.outcome import format_table


def main() -> int:
    """Returns 0 when every trial ended well."""
    names = sorted(
        path.stem
        for path in Path(__file__).parent.glob("[a-z]*.py")
        if path.stem != "outcome" and not path.stem.startswith("test_")
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=names)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for a JSON line a trial")
    options = parser.parse_args()
    module = importlib.import_module(f"tests.campaigns.{options.campaign}")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="campaign-") as work_dir:
        for outcome in module.run_trials(options.trials, options.seed, Path(work_dir)):
            outcomes.append(outcome)
            line = json.dumps(dataclasses.asdict(outcome), ensure_ascii=False)
            if options.output:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            if not outcome.is_good:
                print(line, file=sys.stderr, flush=True)
    print(format_table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
