#!/usr/bin/env bash
# Checks style, spelling and types, then runs the tests; the exit code is the first that is not 0.
#
#   bash run_tests.sh [PYTEST ARGUMENTS]              for instance: bash run_tests.sh -k tokenizer
#   bash run_tests.sh --fast [PYTEST ARGUMENTS]       style, and the tests without slow ones, ranks and GPUs: 6 minutes
#   bash run_tests.sh --engine [PYTEST ARGUMENTS]     only the tests of what runs on ColossalAI, without style
#   bash run_tests.sh --transformers5 [PYTEST ARGUMENTS]     the tests with transformers 5, without style
#
# Two test files run at a time, since much of the time is start-up and waiting; `-n 0` runs one test after the other. So
# do hosts with GPUs, whose memory and time the tests measure.
#
# The environment is created by setup_environment.sh in .venv (with transformers 5: .venv-transformers5), or in
# $COLOSSAL_LLAMA_VENV. COLOSSAL_LLAMA_PYTHON names an interpreter that has everything already (that of a cluster's
# image, for instance); nothing is installed then.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
style=1 selection=() variant=() default=.venv
case ${1:-} in
--fast) selection=(-m "not slow and not distributed and not gpu") && shift ;;
--engine) selection=(-m engine) style= && shift ;;
--transformers5) variant=(--transformers5) default=.venv-transformers5 style= && shift ;;
-h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
esac

if [[ -n ${COLOSSAL_LLAMA_PYTHON:-} ]]; then
    python=$COLOSSAL_LLAMA_PYTHON
else
    venv=${COLOSSAL_LLAMA_VENV:-$project/$default}
    bash "$project/setup_environment.sh" "${variant[@]}" "$venv"
    venv=$(cd "$venv" && pwd)
    python=$venv/bin/python
fi
cd "$project"

# tests/support/hosts.py starts real sshds; the sshd that is fetched for that is next to the environment.
if [[ -z ${COLOSSAL_LLAMA_SSHD:-} ]]; then
    COLOSSAL_LLAMA_SSHD=$(bash tests/fetch_sshd.sh "${venv:-${TMPDIR:-/tmp}/colossal-llama-$UID}/sshd")
    export COLOSSAL_LLAMA_SSHD
fi

if [[ -n $style ]]; then
    echo "== style"
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m codespell_lib
    "$python" -m mypy
fi

echo "== tests"
# One thread a process: the training tests start 2 to 4 processes, which would fight over the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true}
parallel=()
if ! nvidia-smi -L >/dev/null 2>&1; then
    parallel=(-n 2 --dist loadfile --no-loadscope-reorder) # in the order of tests/conftest.py: the longest files first
fi
"$python" -m pytest "${parallel[@]}" "${selection[@]}" "$@"
