#!/usr/bin/env bash
# Signals the ranks of one launch on this host and prints their process ids: bash signal_ranks.sh LAUNCH SIGNAL (0: only prints).
#
# The environment of each rank has LAUNCH as COLOSSAL_LLAMA_LAUNCH and torchrun's LOCAL_RANK. The children of a
# rank have these variables, too, and a rank as parent: they get no signal.
set -uo pipefail

launch=$1 signal=$2

is_rank() {
    grep -qz '^LOCAL_RANK=' "/proc/$1/environ" 2>/dev/null
}

for environment in $(grep -lzxF "COLOSSAL_LLAMA_LAUNCH=$launch" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${environment//[!0-9]/}
    parent=$(awk '$1 == "PPid:" {print $2}' "/proc/$pid/status" 2>/dev/null)
    if is_rank "$pid" && ! is_rank "${parent:-0}" && kill -s "$signal" "$pid" 2>/dev/null; then
        echo "$pid"
    fi
done
