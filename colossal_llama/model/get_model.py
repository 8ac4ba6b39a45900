"""Downloads a model or a tokenizer of a hub, to a plain directory for hosts without a network.

python colossal_llama/model/get_model.py ORG/NAME@REVISION --output_dir DIR
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.utils.arguments import add_options, from_namespace, option, switch
from colossal_llama.utils.cli import CollectingArgumentParser, creatable_directory
from colossal_llama.utils.errors import UserError, run_main
from colossal_llama.utils.hub.files import Listing, Needed, missing_files, read_listing
from colossal_llama.utils.hub.names import ModelName, path_or_name


@dataclass(frozen=True, kw_only=True)
class GetModelArguments:
    """Arguments of the script."""

    name: ModelName
    output_dir: Path | None = option(
        type=creatable_directory,
        metavar="DIR",
        help="new directory for the files, which can be copied to other hosts (default: the hub's cache on this one)",
    )
    tokenizer_only: bool = switch(help="download the tokenizer's files and config.json, no weights")


def main() -> None:
    """Downloads the files, compares them with the hub's checksums, and prints a summary."""
    arguments = parse_arguments()
    needed = Needed.TOKENIZER if arguments.tokenizer_only else Needed.MODEL
    if arguments.output_dir is None:
        from colossal_llama.utils.hub.fetch import local_directory

        local_directory(arguments.name, needed)
        _print_next_command(str(arguments.name), needed)
        return
    listing = _fill(arguments.output_dir, arguments.name, needed)
    _print_summary(arguments.output_dir, listing, needed)
    _print_next_command(str(arguments.output_dir), needed)


def parse_arguments() -> GetModelArguments:
    """Parses and checks the command line; all problems are reported at once."""
    parser = CollectingArgumentParser(
        prog="get_model.py", description="Download a model or a tokenizer of a hub, for hosts without a network too."
    )
    parser.add_argument(
        "name",
        type=_repository_name,
        metavar="ORG/NAME[@REVISION]",
        help="repository of the Hugging Face hub, or modelscope:ORG/NAME[@REVISION]; a revision is a branch, a tag or "
        "a commit",
    )
    add_options(parser, GetModelArguments)
    namespace = parser.parse_args()
    output = namespace.output_dir
    if output is not None and output.exists() and read_listing(output) is None:
        parser.problem(f"--output_dir {output} exists already and is left untouched: give a new name")
    parser.finish()
    return from_namespace(GetModelArguments, namespace, name=namespace.name)


def _repository_name(text: str) -> ModelName:
    name = path_or_name(text)
    if isinstance(name, ModelName):
        return name
    if name.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory here already")
    advice = f"; {name.parent} is a directory here: write {text}@main" if name.parent != Path() else ""
    raise argparse.ArgumentTypeError(f"{text!r} is no ORG/NAME[@REVISION] of a hub{advice}")


def _fill(target: Path, name: ModelName, needed: Needed) -> Listing:
    """Makes the directory, in which all files are as the hub describes them, or nothing is.

    An interrupted download goes on in `.NAME.unfinished` in the same parent directory.

    Raises:
        UserError: it exists with another model, or the hub does not give the files.
    """
    from colossal_llama.utils.atomic_io import fsync_tree, unfinished_path
    from colossal_llama.utils.console import log_rank_zero
    from colossal_llama.utils.file_lock import directory_lock
    from colossal_llama.utils.hub.fetch import download_files, look_up

    listing = look_up(name)
    if target.exists():
        _refuse_other_content(target, listing, needed)
        log_rank_zero(f"{target} is whole already: nothing to do")
        return listing
    partial = unfinished_path(target)
    try:
        with directory_lock(partial):
            names = download_files(listing, needed, partial, local_dir=partial)
            _keep_verified_files(partial, listing, names)
            for hidden in (".cache", ".lock"):
                path = partial / hidden
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            fsync_tree(partial)
            partial.rename(target)
    except BlockingIOError as error:
        raise UserError(f"{error.filename} is downloading to {target} already: wait for it to end") from error
    return listing


def _refuse_other_content(target: Path, listing: Listing, needed: Needed) -> None:
    found = read_listing(target)
    if found is None or found.name != listing.name:
        raise UserError(
            f"--output_dir {target} holds {found.name if found else 'something else'}, and {listing.name} is asked "
            "for: give a new name"
        )
    if problems := missing_files(target, needed):
        raise UserError(f"--output_dir {target} is not whole ({'; '.join(problems[:3])}): give a new name")


def _keep_verified_files(directory: Path, listing: Listing, names: list[str]) -> None:
    """Compares all files with the hub's sizes and checksums; removes what is not right.

    Raises:
        UserError: a file differs, and was removed, so that the next run downloads it again.
    """
    from colossal_llama.utils.console import progress_bar

    problems = []
    for name in progress_bar(names, desc="comparing checksums", unit="file"):
        if problem := listing.files[name].problem_in(directory / name, whole_content=True):
            (directory / name).unlink(missing_ok=True)
            shutil.rmtree(directory / ".cache", ignore_errors=True)
            problems.append(f"{name} of {listing.name} {problem}: run the command again, which downloads it anew")
    if problems:
        raise UserError(problems)
    for path in directory.iterdir():  # files of another revision, which an earlier run downloaded
        if path.name not in names and not path.name.startswith("."):
            path.unlink()


def _print_summary(directory: Path, listing: Listing, needed: Needed) -> None:
    from colossal_llama.utils.console import log_rank_zero, table
    from colossal_llama.utils.custom_code import refuse_custom_code

    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if not path.name.startswith(".")}
    log_rank_zero(table(["file", "bytes"], [*files.items(), ("all", sum(files.values()))]))
    log_rank_zero(f"{listing.name.at(None)} at revision {listing.name.revision} → {directory} ({needed.value})")
    try:
        refuse_custom_code(directory)
    except UserError as error:
        for problem in error.problems:
            log_rank_zero(f"warning: {problem}")
    _name_base_model(directory)


def _name_base_model(directory: Path) -> None:
    """Logs the base model that an adapter needs in addition."""
    from colossal_llama.model.weights.adapter_files import adapter_base_name, is_adapter
    from colossal_llama.utils.console import log_rank_zero

    if is_adapter(directory):
        log_rank_zero(f"it is an adapter, and needs its base model {adapter_base_name(directory)}, too")


def _print_next_command(source: str, needed: Needed) -> None:
    from colossal_llama.utils.cli import PROGRAM
    from colossal_llama.utils.console import log_rank_zero

    if needed is Needed.TOKENIZER:
        log_rank_zero(f"next: {PROGRAM} init_tokenizer --source_tokenizer_dir {source} …")
    else:
        log_rank_zero(f"next: train.py --pretrained {source} …, or {PROGRAM} inference_example --model_path {source} …")


if __name__ == "__main__":
    run_main(main)
