#!/usr/bin/env bash
# Fine-tunes a model on conversations on the hosts of a hostfile. Copy this file, fill in the six variables, run it from the project's root.
#
# The first host of the hostfile is the master; it must reach every host, itself included, by ssh without a password.
# Every host needs this project, the model and the data under the same paths, and sees the same PARENT_SAVE_DIR: colossal_llama/cluster/preflight.py checks all that.
set -euo pipefail

PROJECT_NAME="${PROJECT_NAME:-sft}"
PARENT_SAVE_DIR="${PARENT_SAVE_DIR:-checkpoints}"
PARENT_TENSORBOARD_DIR="${PARENT_TENSORBOARD_DIR:-logs}"
PARENT_CONFIG_FILE="${PARENT_CONFIG_FILE:-configs}"
PRETRAINED_MODEL_PATH="${PRETRAINED_MODEL_PATH:-}" # the model to fine-tune: SAVE_DIR/modelling of the pre-training

declare -a dataset=(
    # the directory of parts that prepare_sft_dataset.py wrote, or some of its parts in training order
    # "data/arrow"
)

NPROC_PER_NODE="${NPROC_PER_NODE:-8}"
HOSTFILE="${HOSTFILE:-hostfile}"
PLUGIN="${PLUGIN:-zero2}"

# Data given as arguments replace the list above.
if [[ $# -gt 0 ]]; then
    dataset=("$@")
fi
if [[ -z $PRETRAINED_MODEL_PATH || ${#dataset[@]} -eq 0 ]]; then
    echo "error: fill in PRETRAINED_MODEL_PATH and dataset in $0 first" >&2
    exit 2
fi
if [[ ! -f $HOSTFILE ]]; then
    echo "error: $HOSTFILE does not exist: copy hostfile.example and write one host name a line" >&2
    exit 2
fi

# On each host the least used GPUs, by memory in use: $(…) stays unexpanded here, and the shell of each host replaces this one
# expression. Every other value and word reaches the hosts as it is (colossal_llama/cluster/colossalai_run.py).
if [[ -z ${CUDA_VISIBLE_DEVICES:-} ]]; then
    export CUDA_VISIBLE_DEVICES="\$(bash colossal_llama/cluster/least_used_gpus.sh $NPROC_PER_NODE)"
fi

# To resume a run that was stopped, give its name: FULL_PROJECT_NAME=sft-2026-01-31-12-00-00 bash train_sft.example.sh …
FULL_PROJECT_NAME="${FULL_PROJECT_NAME:-${PROJECT_NAME}-$(date +%Y-%m-%d-%H-%M-%S)}"
SAVE_DIR="${PARENT_SAVE_DIR}/${FULL_PROJECT_NAME}"
echo "run $FULL_PROJECT_NAME: data ${dataset[*]}, checkpoints in $SAVE_DIR"

# SIGTERM or Ctrl-C to this script (its process id stays the same) reaches the ranks, which save and end.
exec bash colossal_llama/cluster/stoppable.sh "$HOSTFILE" \
    colossalai run --nproc_per_node "$NPROC_PER_NODE" --hostfile "$HOSTFILE" --master_port 30013 train.py \
    --pretrained "$PRETRAINED_MODEL_PATH" \
    --dataset "${dataset[@]}" \
    --plugin "$PLUGIN" \
    --save_interval 400 \
    --save_dir "$SAVE_DIR" \
    --load_checkpoint auto \
    --tensorboard_dir "${PARENT_TENSORBOARD_DIR}/${FULL_PROJECT_NAME}" \
    --config_file "${PARENT_CONFIG_FILE}/${FULL_PROJECT_NAME}.json" \
    --num_epochs 1 \
    --micro_batch_size 8 \
    --lr 5e-5 \
    --mixed_precision bf16 \
    --gradient_clipping 1.0 \
    --weight_decay 0.01 \
    --warmup_steps 100 \
    --accumulation_steps 8 \
    --use_neft \
    --use_grad_checkpoint \
    --use_flash_attn
