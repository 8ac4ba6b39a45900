#!/usr/bin/env bash
# Creates the virtual environment of the project.
#
#   bash setup_environment.sh [VENV]     VENV: the environment's directory, by default .venv next to this script
#   bash setup_environment.sh --transformers5 [VENV]     with transformers 5; by default in .venv-transformers5
#   PYTHON=/path/to/python bash setup_environment.sh     chooses the interpreter (3.11 or 3.12)
#
# Installs requirements.txt (or requirements-transformers5.txt), then requirements-engine.txt without its dependencies,
# checks the result, and records in the environment what it installed: a second run returns at once, changed requirements
# are installed, and an interrupted run is repaired by the next. pip's own settings (PIP_INDEX_URL and the like) apply as
# always.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

requirements=$project/requirements.txt default=.venv
if [[ ${1:-} == --transformers5 ]]; then
    requirements=$project/requirements-transformers5.txt default=.venv-transformers5
    shift
fi
if [[ $# -gt 1 || ${1:-} == -* ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
venv=${1:-$project/$default}
python=$venv/bin/python
stamp=$venv/.setup-complete     # what was installed; written last
unfinished=$venv/.setup-started # there from the first change to the last: an interrupted run leaves it behind

# The fingerprint of the contents that the environment must have: both files and the interpreter's version.
fingerprint() {
    "$python" - "$requirements" "$project/requirements-engine.txt" <<'PYTHON'
import hashlib, sys

digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        digest.update(file.read())
print(digest.hexdigest())
PYTHON
}

already_done() {
    [[ -f $stamp && ! -e $unfinished && -x $python && $(fingerprint) == "$(cat "$stamp")" ]]
}

suits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1
}

# Prints the first interpreter that suits; $PYTHON, if set, must be the one.
find_interpreter() {
    if [[ -n ${PYTHON:-} ]]; then
        suits "$PYTHON" && echo "$PYTHON" && return
        fail "PYTHON=$PYTHON is not Python 3.11 or 3.12 with venv and ensurepip: unset PYTHON or name another"
    fi
    local candidate
    for candidate in python3 python3.11 python3.12 python; do
        suits "$candidate" && command -v "$candidate" && return
    done
    fail "no Python 3.11 or 3.12 with venv and ensurepip was found: tried python3, python3.11, python3.12 and python" \
        "install one (on Debian and Ubuntu: python3.11 and python3.11-venv), or name it: PYTHON=/path/to/python bash $0"
}

make_environment() {
    if [[ -e $venv && ! -d $venv ]]; then
        fail "$venv is a file: name another directory for the environment"
    fi
    if [[ -d $venv && ! -e $unfinished && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        fail "$venv is not empty and not a virtual environment: name another directory, or empty it"
    fi
    if [[ -f $venv/pyvenv.cfg ]] && "$python" -c '' 2>/dev/null; then
        suits "$python" || fail "$venv was created with $("$python" --version 2>&1), and 3.11 or 3.12 is needed:" \
            "delete it or name another directory"
        touch "$unfinished"
    else # absent, incomplete, or with an interpreter that no longer exists
        local interpreter
        interpreter=$(find_interpreter)
        mkdir -p "$venv"
        touch "$unfinished"
        echo "making $venv with $("$interpreter" --version) ($interpreter)"
        rm -f "$venv"/bin/python*
        "$interpreter" -m venv --without-pip "$venv"
    fi
}

# An interrupted pip leaves packages half-copied, and takes them for installed the next time. Every package whose own list
# of files (RECORD, written last) is missing or does not match the disk is removed, so that pip installs it again.
remove_broken_packages() {
    "$python" - <<'PYTHON'
import csv, pathlib, shutil, sysconfig

site = pathlib.Path(sysconfig.get_path("purelib"))
for leftover in site.glob("~*"):  # a package on its way out when pip was stopped
    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
for info in site.glob("*.dist-info"):
    try:
        with open(info / "RECORD", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        whole = (info / "INSTALLER").is_file() and all(
            (site / path).is_file() and (not size or (site / path).stat().st_size == int(size)) for path, _, size in rows
        )
    except (OSError, ValueError):
        whole = False
    if not whole:
        print(f"installing again, half-installed: {info.name.removesuffix('.dist-info')}")
        shutil.rmtree(info)
PYTHON
}

# The project runs with torch 2.11 to 2.13: one that is installed already (your CUDA build, for instance) is kept; prints its version.
torch_to_keep() {
    "$python" - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version

try:
    found = version("torch")
except PackageNotFoundError:
    found = ""
if found and (2, 11) <= tuple(int(part) for part in found.split("+")[0].split(".")[:2]) < (2, 14):
    print(found)
PYTHON
}

install() {
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --default-pip >/dev/null
    local chosen=$venv/.setup-requirements.txt kept pinned
    kept=$(torch_to_keep)
    pinned=$(sed -n 's/^torch==//p' "$requirements")
    if [[ -n $kept && ${kept%%+*} != "$pinned" ]]; then
        echo "keeping torch $kept, which is installed already and supported (a fresh environment gets $pinned)"
        sed "s/^torch==.*/torch==$kept/" "$requirements" >"$chosen"
    else
        cp "$requirements" "$chosen"
    fi
    "$python" -m pip install --quiet --no-compile --requirement "$chosen"
    "$python" -m pip install --quiet --no-compile --no-deps --requirement "$project/requirements-engine.txt"
    rm "$chosen"
    # Compiles on all cores, which pip does not, and leaves out modules that are never imported: 25 s of processor time
    # instead of 39.
    local site
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -W ignore -m compileall -q -q -j 0 -x '/tests?/|/transformers/models/(?!llama|auto)' "$site" || true
}

# ColossalAI's metadata pins an old torch and lists services that training does not need; ours pins the torch of a fresh
# environment, where another may have been kept. Any other complaint is an error.
check() {
    local complaints others
    complaints=$("$python" -m pip check 2>&1 || true)
    others=$(grep -v -e '^colossalai ' -e '^colossal-llama .* torch==' -e '^No broken requirements' <<<"$complaints" || true)
    [[ -z $others ]] || fail "the packages in $venv do not fit together:" "$others"
    echo "pip check: $(grep -c '^colossalai ' <<<"$complaints" || true) complaints, all of them ColossalAI's own outdated pins"
    "$python" -W ignore -c '
import torch, transformers, datasets, sentencepiece, peft, colossalai, importlib.metadata as metadata
names = ("torch", "transformers", "datasets", "colossalai")
print("imports:", ", ".join(f"{name} {metadata.version(name)}" for name in names))
' 2>"$venv/.setup-imports.log" || {
        cat "$venv/.setup-imports.log" >&2
        fail "the packages in $venv do not import: delete $venv and run this script again"
    }
    rm "$venv/.setup-imports.log"
}

main() {
    if already_done; then
        echo "environment: $venv is ready"
        return
    fi
    make_environment
    if command -v flock >/dev/null; then # two runs at once: the second waits
        exec 9>"$venv/.setup-lock"
        flock 9
        if [[ ! -e $unfinished ]] && already_done; then
            echo "environment: $venv is ready (another run finished it)"
            return
        fi
    fi
    touch "$unfinished"
    remove_broken_packages
    echo "installing the requirements into $venv (some minutes; 2.8 GB, with a CUDA build of torch 5.6 GB)"
    install
    check
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm "$unfinished"
    echo "environment: $venv is ready after $SECONDS s"
}

main
