"""The table of docs/cleaning.md: every rule with its switch and thresholds by preset.

python -m tests.support.rules_table            print the table
python -m tests.support.rules_table --write    write it into docs/cleaning.md
"""

import argparse
from pathlib import Path
from typing import Any

from colossal_llama.cleaning.rule_settings import PRESETS, read_rules

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "cleaning.md"
BEGIN, END = "<!-- thresholds: begin -->", "<!-- thresholds: end -->"


def rules_table() -> str:
    """Formats a row for each rule; other presets show only what differs from `web`."""
    rows = [f"| rule | {' | '.join(f'`{preset}`' for preset in PRESETS)} |", "|---|" + "---|" * len(PRESETS)]
    settings = {preset: read_rules(preset).content() for preset in PRESETS}
    for name, web in settings["web"].items():
        cells = [_cell(web, {})]
        cells += [_cell(settings[preset][name], web) for preset in PRESETS if preset != "web"]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(values: dict[str, Any], known: dict[str, Any]) -> str:
    parts = [] if values["on"] == known.get("on") else ["on" if values["on"] else "off"]
    if values["on"] or not known:
        shown = {key: value for key, value in values.items() if key != "on" and value != known.get(key)}
        parts += [f"{key} {_value(value)}" for key, value in shown.items()]
    return ", ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return str(value)


def documented_table() -> str:
    """The table as the document has it."""
    return DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(rules_table())
        return
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{rules_table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
