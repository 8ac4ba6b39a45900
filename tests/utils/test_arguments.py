"""Options declared as dataclass fields: parsed as with argparse itself, and gathered in groups."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from colossal_llama.utils.arguments import (
    add_options,
    declared_options,
    from_namespace,
    group,
    option,
    option_values,
    switch,
    value_problems,
)
from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range, parse_bool


@dataclass(frozen=True, kw_only=True)
class _Rows:
    dataset: tuple[Path, ...] = option((), nargs="+", type=Path, metavar="PART", help="parts")
    micro_batch_size: int = option(1, "--batch_size", type=number_in_range(int, 1), metavar="ROWS", help="rows")
    padding: str = option("none", choices=("none", "longest"), help="of rows")


@dataclass(frozen=True, kw_only=True)
class _Optimizer:
    weight_decay: float = option(0.1, "-w", type=number_in_range(float, 0), help="decay")
    fused: bool = option(True, type=parse_bool, metavar="BOOL", help="kernels")
    offload: bool = switch(help="to the host")
    max_steps: int | None = option(type=number_in_range(int, 1), help="at most")


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    kind: str
    save_dir: Path = option(needed="name the directory", type=Path, help="output")
    rows: _Rows = group("rows", "What is read.")
    optimizer: _Optimizer = group()


def _parser() -> CollectingArgumentParser:
    parser = CollectingArgumentParser(prog="example")
    add_options(parser, _Arguments)
    return parser


def test_defaults_are_those_of_the_fields():
    arguments = from_namespace(_Arguments, _parser().parse_args(["--save_dir", "out"]), kind="a")
    assert arguments == _Arguments(kind="a", save_dir=Path("out"), rows=_Rows(), optimizer=_Optimizer())


def test_values_aliases_and_switches_arrive_in_their_groups_and_lists_become_tuples():
    words = "--save_dir out --dataset a b --batch_size 3 -w 0 --fused no --offload --max_steps 7 --padding longest"
    arguments = from_namespace(_Arguments, _parser().parse_args(words.split()), kind="a")
    assert arguments.rows == _Rows(dataset=(Path("a"), Path("b")), micro_batch_size=3, padding="longest")
    assert arguments.optimizer == _Optimizer(weight_decay=0.0, fused=False, offload=True, max_steps=7)
    assert list(option_values(arguments)) == [
        *("save_dir", "dataset", "micro_batch_size", "padding", "weight_decay", "fused", "offload", "max_steps")
    ]


def test_help_is_that_of_the_same_calls_of_add_argument():
    by_hand = CollectingArgumentParser(prog="example")
    by_hand.add_argument("--save_dir", type=Path, help="output")
    rows = by_hand.add_argument_group("rows", "What is read.")
    rows.add_argument("--dataset", nargs="+", type=Path, default=(), metavar="PART", help="parts")
    rows.add_argument("--micro_batch_size", "--batch_size", default=1, metavar="ROWS", help="rows")
    rows.add_argument("--padding", choices=("none", "longest"), default="none", help="of rows")
    by_hand.add_argument("-w", "--weight_decay", default=0.1, help="decay")
    by_hand.add_argument("--fused", default=True, metavar="BOOL", help="kernels")
    by_hand.add_argument("--offload", action="store_true", help="to the host")
    by_hand.add_argument("--max_steps", help="at most")
    assert _parser().format_help() == by_hand.format_help()


def test_a_needed_option_has_its_advice_and_no_default():
    advice = {name: declared.needed for name, declared in declared_options(_Arguments).items() if declared.needed}
    assert advice == {"save_dir": "name the directory"}
    with pytest.raises(TypeError):
        _Arguments(kind="a", rows=_Rows(), optimizer=_Optimizer())


def test_a_given_value_replaces_that_of_an_option():
    namespace = argparse.Namespace(dataset=["a"], micro_batch_size=1, padding="none")
    assert from_namespace(_Rows, namespace, padding="longest").padding == "longest"


def test_values_from_python_are_checked_as_those_of_the_command_line():
    good = _Arguments(kind="a", save_dir=Path("out"), rows=_Rows(micro_batch_size=3), optimizer=_Optimizer(max_steps=7))
    assert list(value_problems(good)) == []
    rows = _Rows(micro_batch_size=0, padding="some")
    bad = _Arguments(kind="a", save_dir=Path("out"), rows=rows, optimizer=_Optimizer(fused="no", max_steps=1.5))
    assert [problem.partition("=")[0] for problem in value_problems(bad)] == [
        *("micro_batch_size", "padding", "fused", "max_steps"),
    ]
