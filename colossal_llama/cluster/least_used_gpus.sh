#!/usr/bin/env bash
# Prints the N GPUs of this host with the least memory in use, for CUDA_VISIBLE_DEVICES: `2,3,5,7`.
#
# Without nvidia-smi it prints the first N: on a host without GPUs these do not exist, and training takes the CPU. Where nvidia-smi fails,
# it prints a name that train.py refuses: `export X="$(…)"` has no exit code, and the run would begin on the CPU.
set -euo pipefail

number=$1
if [[ ! $number =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "error: $number is not a number of GPUs" >&2
    exit 2
fi
if command -v nvidia-smi >/dev/null; then
    if ! shown=$(nvidia-smi --query-gpu=memory.used,index --format=csv,noheader,nounits); then
        echo "error: nvidia-smi fails on $(uname -n): $shown" >&2
        echo nvidia-smi-fails
        exit 1
    fi
    sort -n <<<"$shown" | head -n "$number" | awk '{print $2}' | sort -n | paste -sd,
else
    seq -s, 0 $((number - 1))
fi
