"""Command-line options declared once, as fields of frozen dataclasses. Imports no torch.

A field carries what the parser and `--help` need; its name is the long option's:

    @dataclass(frozen=True, kw_only=True)
    class OptimizerArguments:
        lr: float = option(3e-4, type=number_in_range(float, above=0), help="peak learning rate")
        weight_decay: float = option(0.1, "-w", type=number_in_range(float, 0), help="weight decay")

    @dataclass(frozen=True, kw_only=True)
    class Arguments:
        optimizer: OptimizerArguments = group("optimizer: AdamW")

    add_options(parser, Arguments)
    arguments = from_namespace(Arguments, parser.parse_args())
    arguments.optimizer.lr

The idea is litgpt's (`litgpt/args.py`): type, default and documentation of an option have one home.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, cast

_OPTION, _GROUP = "option", "group"
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """The settings of `add_argument`, other than the option's own name.

    Attributes:
        flags: further names: short ones, and aliases of the long one.
        settings: keyword arguments of `ArgumentParser.add_argument`.
        needed: advice to print when the option is missing; None for one that may be left out.
        only_with: name of the option without which this one has no effect, and after it the value
            that the option must have, where any other than a false one does not do.
    """

    flags: tuple[str, ...]
    settings: dict[str, Any]
    needed: str | None
    only_with: str | None


def option(
    default: Any = None,
    *flags: str,
    help: str,
    needed: str | None = None,
    only_with: str | None = None,
    **settings: Any,
) -> Any:
    """Declares the field of an option.

    Args:
        default: of the field and of the option. A needed or required option has none.
        flags: further names, `"-w"` or `"--batch_size"`; help lists short ones first, aliases last.
        help: for `--help`; a percent sign is written `%%`.
        needed: advice that `declared_options` gives to a caller who reports missing options itself.
        only_with: name of the option without which this one has no effect (`ineffective_options`):
            `"use_neft"`, or with the value that it must have: `"lr_schedule wsd"`.
        settings: what else `ArgumentParser.add_argument` takes: type, choices, nargs, metavar,
            required. A list that argparse gathers becomes a tuple in the field.
    """
    has_default = needed is None and not settings.get("required")
    settings = {**settings, "help": help, **({"default": default} if has_default else {})}
    metadata = {_OPTION: Option(flags, settings, needed, only_with)}
    return field(default=default if has_default else MISSING, metadata=metadata)


def switch(*flags: str, help: str, only_with: str | None = None) -> Any:
    """Declares the field of a boolean option without a value: absent is False, given is True."""
    return option(False, *flags, help=help, only_with=only_with, action="store_true")


def group(title: str | None = None, description: str | None = None) -> Any:
    """Declares a field that holds further options: its annotation is their dataclass.

    Args:
        title: of the group in `--help`; None lists the options in the group or parser around them.
        description: below the title.
    """
    return field(metadata={_GROUP: (title, description)})


def add_options(parser: argparse._ActionsContainer, declared: Any) -> None:
    """Adds all options of a dataclass, and of the groups in it, to a parser or an argument group.

    Fields that neither `option`, `switch` nor `group` declared are left to the caller.
    """
    for entry in fields(declared):
        if _GROUP in entry.metadata:
            title, description = entry.metadata[_GROUP]
            add_options(parser if title is None else parser.add_argument_group(title, description), entry.type)
        elif _OPTION in entry.metadata:
            declaration = entry.metadata[_OPTION]
            names = sorted([f"--{entry.name}", *declaration.flags], key=lambda name: name.startswith("--"))
            parser.add_argument(*names, **declaration.settings)


def from_namespace(declared: Callable[..., T], namespace: argparse.Namespace, **others: Any) -> T:
    """Builds the dataclass, with its groups, from what the parser of `add_options` has returned.

    Args:
        declared: the dataclass.
        namespace: values of its options; the default where one is absent.
        others: values of fields that no option sets, or that replace an option's.
    """
    values: dict[str, Any] = dict(others)
    for entry in fields(cast(Any, declared)):
        if entry.name in others:
            continue
        if _GROUP in entry.metadata:
            values[entry.name] = from_namespace(cast(Any, entry.type), namespace)
        elif _OPTION in entry.metadata and hasattr(namespace, entry.name):
            value = getattr(namespace, entry.name)
            values[entry.name] = tuple(value) if isinstance(value, list) else value
    return declared(**values)


def option_values(arguments: Any) -> dict[str, Any]:
    """Values of all options by name, in the order of their declaration, groups flattened."""
    values: dict[str, Any] = {}
    for entry in fields(arguments):
        value = getattr(arguments, entry.name)
        if _GROUP in entry.metadata:
            values |= option_values(value)
        elif _OPTION in entry.metadata:
            values[entry.name] = value
    return values


def declared_options(declared: Any) -> dict[str, Option]:
    """Declarations of all options by name, in their order, groups flattened."""
    found: dict[str, Option] = {}
    for entry in fields(declared):
        if _GROUP in entry.metadata:
            found |= declared_options(entry.type)
        elif _OPTION in entry.metadata:
            found[entry.name] = entry.metadata[_OPTION]
    return found


def is_given(arguments: Any, name: str) -> bool:
    """True when an option differs from its default."""
    return option_values(arguments)[name] != declared_options(type(arguments))[name].settings.get("default")


def ineffective_options(arguments: Any) -> Iterator[tuple[str, str]]:
    """Options that are given without the one that they need, each with that one's `only_with`.

    The needed option is absent when its value is false: None, 0, False or empty; or when it has
    another value than the one that `only_with` names.
    """
    values = option_values(arguments)
    for name, declaration in declared_options(type(arguments)).items():
        if declaration.only_with is None or values[name] == declaration.settings.get("default"):
            continue
        needed, *value = declaration.only_with.split()
        if not values[needed] or (value and [str(values[needed])] != value):
            yield name, declaration.only_with


def value_problems(arguments: Any) -> Iterator[str]:
    """Problems of values that were given from Python, by the types and choices of their options."""
    values = option_values(arguments)
    for name, declaration in declared_options(type(arguments)).items():
        value, settings = values[name], declaration.settings
        if value == settings.get("default", value_problems):  # not given
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if problem := _item_problem(item, settings):
                yield f"{name}={value!r}: {problem}"


def _item_problem(item: Any, settings: dict[str, Any]) -> str | None:
    if "choices" in settings and item not in settings["choices"]:
        return f"choose from {', '.join(map(str, settings['choices']))}"
    if "type" not in settings:
        return None
    try:
        converted = settings["type"](str(item))
    except argparse.ArgumentTypeError as error:
        return str(error)
    return f"give {converted!r}" if converted != item and type(converted) is not type(item) else None
