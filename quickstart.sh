#!/usr/bin/env bash
# From nothing to a LLaMA that was expanded, continued, fine-tuned and answers, on the small example in examples/.
#
#   bash quickstart.sh [WORK_DIR]     WORK_DIR gets all output; by default quickstart_output/ next to this script
#
# Takes at most five minutes on two cores after the installation, and uses the GPUs when there are any. A run that was
# interrupted is resumed where it stopped. The environment is created by setup_environment.sh in .venv, or in
# $COLOSSAL_LLAMA_VENV; COLOSSAL_LLAMA_PYTHON names an interpreter that has everything already.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

if [[ $# -gt 1 || ${1:-} == -* ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi

# The published stages on a small scale. Every conversation is learned by heart: 62 of 62 answers; with 30 epochs of sft 60.
pretrain_epochs=16 pretrain_lr=4e-3 sft_epochs=40 sft_lr=3e-3
rows_per_step=4 conversations_per_step=8 max_length=256

set_up() {
    if [[ -n ${COLOSSAL_LLAMA_PYTHON:-} ]]; then
        python=$COLOSSAL_LLAMA_PYTHON
    else
        local venv=${COLOSSAL_LLAMA_VENV:-$project/.venv}
        bash "$project/setup_environment.sh" "$venv"
        python=$(cd "$venv" && pwd)/bin/python
    fi
}

# WORK_DIR is new, empty, or that of an earlier quick start with the same scripts and texts.
open_work_directory() {
    work=${1:-$project/quickstart_output}
    [[ ! -e $work || -d $work ]] || fail "$work is a file: name a directory"
    local version
    version=$(cd "$project" && cat quickstart.sh examples/*.* examples/*/* | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    if [[ -d $work && -n $(ls -A "$work") ]]; then
        [[ -f $work/.quickstart ]] || fail "$work contains other files: name a new directory, bash quickstart.sh WORK_DIR"
        [[ $(cat "$work/.quickstart") == "$version" ]] ||
            fail "$work belongs to another version of the quick start: delete it, or name another directory"
    fi
    mkdir -p "$work"
    work=$(cd "$work" && pwd)
    echo "$version" >"$work/.quickstart"
    mkdir -p "$work/logs" "$work/.done"
}

choose_devices() {
    local gpus
    gpus=$("$python" -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)')
    if ((gpus)); then
        processes=$gpus precision=bf16 device=cuda:0 devices="$gpus GPU(s)"
    else
        processes=2 precision=fp32 device=cpu devices="2 processes on the CPU"
        export OMP_NUM_THREADS=1 # a thread each
    fi
}

# step NAME TITLE OUTPUT COMMAND…: runs a command once; OUTPUT is its output, deleted first if an interrupted run left it.
step() {
    local name=$1 title=$2 output=$work/$3 start=$SECONDS
    shift 3
    number=$((number + 1))
    if [[ -e $work/.done/$name ]]; then
        printf '%2d  %-64s  done before\n' "$number" "$title"
        return
    fi
    rm -rf "$output"
    [[ ! -t 1 ]] || printf '%2d  %-64s  …\r' "$number" "$title"
    if ! "$@" >"$work/logs/$name.log" 2>&1 </dev/null; then
        echo "the last lines of $work/logs/$name.log:" >&2
        tr '\r' '\n' <"$work/logs/$name.log" | tail -n 30 >&2
        fail "step $number ($title) failed; solve the problem and run this command again: it resumes with this step"
    fi
    touch "$work/.done/$name"
    printf '%2d  %-64s  %3d s\n' "$number" "$title" $((SECONDS - start))
}

# train NAME DATA EPOCHS LR ROWS ARGUMENTS…: train.py with ROWS rows a step over all processes.
train() {
    local name=$1 data=$2 epochs=$3 lr=$4 rows=$5
    shift 5
    "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" train.py \
        --plugin zero2 --mixed_precision "$precision" --dataset "$work/$data"/arrow --max_length $max_length \
        --num_epochs "$epochs" --lr "$lr" --accumulation_steps 1 \
        --micro_batch_size $(((rows + processes - 1) / processes)) --skip_save_each_epoch \
        --save_dir "$work/$name/checkpoints" --tensorboard_dir "$work/$name/tensorboard" \
        --config_file "$work/$name/config.json" "$@"
}

# Every conversation of the example, without its last answer; greedy.
ask() {
    cat examples/sft/*.jsonl >"$work/questions.jsonl"
    "$python" inference_example.py --model_path "$work/sft/checkpoints/modelling" --device "$device" --prompt_style sft \
        --do_sample False --max_new_tokens 80 --input_file "$work/questions.jsonl" --output_file "$work/answers.jsonl"
}

report() {
    "$python" "$project/examples/quickstart_report.py" "$@"
}

main() {
    set_up
    SECONDS=0
    number=0
    open_work_directory "$@"
    cd "$project"
    choose_devices
    echo "quick start in $work, $devices"

    step base_model "make a tiny random base model with an English tokenizer" base_model \
        "$python" examples/make_base_model.py --output_dir "$work/base_model"
    step learn "learn which Chinese pieces are worth adding" pieces \
        "$python" colossal_llama/tokenizer/learn_pieces.py --source_tokenizer_dir "$work/base_model" \
        --data_input_dirs examples/pretrain --scripts Han --min_frequency 2 --output_dir "$work/pieces"
    step expand "expand the tokenizer by these pieces" tokenizer \
        "$python" colossal_llama/tokenizer/init_tokenizer.py --source_tokenizer_dir "$work/base_model" \
        --target_tokenizer_dir "$work/tokenizer" --expand_tokens_file "$work/pieces/pieces.jsonl"
    step compression "measure the compression before and after" compression.json \
        "$python" colossal_llama/tokenizer/report.py --tokenizers before="$work/base_model" after="$work/tokenizer" \
        --data_input_dirs examples/pretrain --output_file "$work/compression.json"
    report compression "$work/compression.json"
    step initialise "initialise the embeddings of the new pieces" model \
        "$python" colossal_llama/model/init_model.py --source_model_and_tokenizer_path "$work/base_model" \
        --target_tokenizer_path "$work/tokenizer" --target_model_path "$work/model"
    step prepare_pretrain "prepare the texts: tokenize, pack, write parts" data_pretrain \
        "$python" prepare_pretrain_dataset.py --data_input_dirs examples/pretrain --tokenizer_dir "$work/model" \
        --data_output_dirs "$work/data_pretrain" --max_length $max_length --num_spliced_dataset_bins 4
    step pretrain "continue the pre-training: $pretrain_epochs epochs, zero2" pretrain \
        train pretrain data_pretrain $pretrain_epochs $pretrain_lr $rows_per_step --pretrained "$work/model"
    report loss "$work/pretrain/tensorboard"
    step prepare_sft "prepare the conversations" data_sft \
        "$python" prepare_sft_dataset.py --data_input_dirs examples/sft --tokenizer_dir "$work/model" --llama_version 2 \
        --data_output_dirs "$work/data_sft" --max_length $max_length --num_spliced_dataset_bins 2
    step sft "fine-tune on the conversations: $sft_epochs epochs, zero2" sft \
        train sft data_sft $sft_epochs $sft_lr $conversations_per_step \
        --load_checkpoint "$work/pretrain/checkpoints/modelling"
    report loss "$work/sft/tensorboard"
    step plot "plot the losses by step and by tokens" loss.png \
        "$python" colossal_llama/training/plot_training.py "$work/pretrain/tensorboard" "$work/sft/tensorboard" \
        --labels pre-training fine-tuning --output "$work/loss.png"
    step ask "generate an answer to every question of the example" answers.jsonl ask
    report answers "$work/answers.jsonl"

    cat <<SUMMARY

done after $SECONDS s (installation not counted); in $work:
  base_model/ tokenizer/ model/    the base model, the expanded tokenizer, the expanded model
  pieces/ compression.json         the added pieces, and the compression before and after
  data_pretrain/ data_sft/         prepared parts (arrow/, jsonl/) with their manifest.json
  pretrain/ sft/                   config.json, tensorboard/ (also metrics.jsonl), checkpoints/modelling/ (the model)
  loss.png                         the losses by step and by tokens
  answers.jsonl                    its answers to the questions of examples/sft
  logs/                            the output of every step
Ask it yourself: $python inference_example.py --model_path $work/sft/checkpoints/modelling \\
    --prompt_style sft --do_sample False --input_txt '谁是云桥镇的铁匠？'
SUMMARY
}

main "$@"
