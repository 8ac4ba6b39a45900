r"""Starts `colossalai run` so that words and environment reach every host as they were given.

`colossalai run` joins its words with spaces for a shell on each host, and exports its environment
there between double quotes. A space, a quote or `$(…)` in a name would be split or executed. Here
each word is quoted, the environment is reduced to what training needs, and what cannot be handed on
is refused before anything starts. The words are those of `colossalai run`:

    python colossal_llama/cluster/colossalai_run.py --nproc_per_node 8 --hostfile hostfile \
        train.py --pretrained model …
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.cluster.hostfile import host_problem, read_hostfile, resolution_problems, ssh_problems
from colossal_llama.utils.cli import CollectingArgumentParser, is_decodable
from colossal_llama.utils.errors import UserError, run_main

_HOST_LISTS = ("-H", "-host", "--host", "--include", "--exclude")
_OPTIONS = (
    *_HOST_LISTS,
    "--hostfile",
    "--num_nodes",
    "--nproc_per_node",
    "--master_port",
    "--master_addr",
    "--extra_launch_args",
    "--ssh-port",
)
"""Options of `colossalai run`; each has a value."""
_PLAIN = re.compile(r"[\w./,:=@%+-]*")
"""Text that no shell changes. `colossalai run` takes some words only unquoted."""
_PLAIN_DIRECTORY = re.compile(r"/[\w./,:=@%+ -]*")  # fabric escapes the spaces of the working directory

_USED_HERE = frozenset(
    ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
)
"""Variables that `colossalai run` reads itself, so that their values cannot be escaped."""
_HANDED_ON = (
    *("LANG", "LANGUAGE", "LC_", "TZ", "PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "XDG_CACHE_HOME", "LD_", "MALLOC_"),
    *("CUDA", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "FI_", "IBV_", "TORCH", "PYTORCH_", "TRITON_", "USE_TORCH"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "HF_", "TRANSFORMERS_", "TOKENIZERS_"),
    "COLOSSAL_LLAMA_",
)
"""Beginnings of the names of further variables that the hosts get."""
_FURTHER_NAMES = "COLOSSAL_LLAMA_HAND_ON"
"""Variable with further names, separated by commas."""
_SECRET = re.compile(r"TOKEN$|SECRET|PASSWORD|CREDENTIAL")
_CHOICE_OF_GPUS = re.compile(r"\$\(bash colossal_llama/cluster/least_used_gpus\.sh [0-9]+\)")
"""Value of CUDA_VISIBLE_DEVICES that the shell of each host is to replace (train.example.sh)."""


def main() -> None:
    """Replaces this process by `colossalai run`."""
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        _show_help()
    options, script = split_words(words)
    if problems := [*word_problems(options, script), *_directory_problems()]:
        raise UserError(problems)
    environment, notes = clean_environment(os.environ)
    program = shutil.which("colossalai")
    if program is None:
        raise UserError("colossalai is not in PATH: run setup_environment.sh, and activate its environment")
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    quoted = [shlex.quote(word) for word in script]
    os.execve(program, [program, "run", *options, "--", *quoted], environment)


def _show_help() -> None:
    CollectingArgumentParser(
        prog="colossalai_run.py",
        usage="%(prog)s [-h] [OPTION OF colossalai run …] SCRIPT.py [ARGUMENT …]",
        description="Start `colossalai run` with each word quoted, and the environment reduced to what training needs.",
    ).parse_args(["--help"])


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides the words of `colossalai run` into its options, and the script with its arguments.

    Raises:
        UserError: an option is unknown or has no value, or there is no script.
    """
    position = 0
    while position < len(words) and words[position].startswith("-") and words[position] != "--":
        name, has_value, _ = words[position].partition("=")
        if name not in _OPTIONS:
            raise UserError(f"{name} is not an option of colossalai run, and stands before the script: correct it")
        position += 1 if has_value else 2
    script = list(words[position:])
    if script[:1] == ["--"]:
        del script[0]
    if not script:
        raise UserError(
            "colossalai run: no script is given, or the last option has no value: give train.py and its arguments"
        )
    return list(words[:position]), script


def word_problems(options: Sequence[str], script: Sequence[str]) -> list[str]:
    """Words that cannot be handed to the hosts, and hosts that cannot be found."""
    problems = [
        f"{word!r} is not UTF-8, and cannot be handed to other hosts: rename it"
        for word in (*options, *script)
        if not is_decodable(word)
    ]
    if problems:
        return problems
    if not _PLAIN.fullmatch(script[0]) or not script[0].endswith(".py") or script[0].startswith("-"):
        problems.append(f"{script[0]!r}: the script must be a .py file whose path has no spaces or shell characters")
    started_on: list[str] = []
    master: list[str] = []
    given = _values(options)
    for name, value in given:
        if name == "--hostfile":
            try:
                started_on += read_hostfile(Path(value))
            except UserError as error:
                problems += error.problems
        elif name in _HOST_LISTS:
            problems += [f"{name}: {problem}" for host in value.split(",") if (problem := host_problem(host))]
            started_on += value.split(",") if name in ("-H", "-host", "--host") else []
        elif not _PLAIN.fullmatch(value):
            problems.append(f"{name} {value!r} has characters that a shell would interpret: choose another value")
        elif name == "--master_addr":
            master = [value]
    port = dict(given).get("--ssh-port")
    if port is not None and not port.isdecimal():
        problems.append(f"--ssh-port {port!r} is not a number")
    return problems or resolution_problems(started_on + master) or ssh_problems(started_on, int(port) if port else None)


def clean_environment(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Chooses the variables that the hosts get, with values escaped for double quotes.

    Returns:
        The environment of `colossalai run`, and notes about what is not handed on.

    Raises:
        UserError: a variable that `colossalai run` itself reads has a value that a shell changes.
    """
    further = [name.strip() for name in variables.get(_FURTHER_NAMES, "").split(",") if name.strip()]
    chosen = {name: value for name, value in variables.items() if value and _is_handed_on(name, further)}
    environment, notes, problems = {}, [], []
    for name, value in chosen.items():
        if "\n" in value or not is_decodable(value):
            notes.append(f"{name} is not handed to the hosts: its value has a line break, or is not UTF-8")
        elif name == "CUDA_VISIBLE_DEVICES" and _CHOICE_OF_GPUS.fullmatch(value):
            environment[name] = value
        else:
            environment[name] = re.sub(r'([\\"$`])', r"\\\1", value)
            if name in _USED_HERE and environment[name] != value:
                problems.append(
                    f"{name}={value!r} has characters that the shells of the hosts would interpret: change it"
                )
    if problems:
        raise UserError(problems)
    missing = [name for name in further if name not in environment]
    notes += [
        f"{_FURTHER_NAMES}: {name} is not set, or no name of a variable" for name in missing if name not in chosen
    ]
    return environment, notes


def _is_handed_on(name: str, further: Sequence[str]) -> bool:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:  # a function that bash exports, for instance
        return False
    if name in further or name in _USED_HERE:
        return True
    return name.startswith(_HANDED_ON) and not _SECRET.search(name)


def _values(options: Sequence[str]) -> list[tuple[str, str]]:
    """Options with their values."""
    pairs, words = [], list(options)
    while words:
        name, has_value, value = words.pop(0).partition("=")
        pairs.append((name, value if has_value else words.pop(0)))
    return pairs


def _directory_problems() -> list[str]:
    """The working directory, where `colossalai run` starts the script on every host."""
    directory = str(Path.cwd())
    if _PLAIN_DIRECTORY.fullmatch(directory) and is_decodable(directory):
        return []
    return [
        f"the working directory {directory!r} has characters that a shell would interpret: rename it, or link to it"
    ]


if __name__ == "__main__":
    run_main(main)
