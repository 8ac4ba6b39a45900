r"""Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI's Booster.

The options: `python train.py --help`. For instance:

    torchrun --standalone --nproc_per_node 8 train.py \
        --pretrained MODEL --dataset DATA/arrow --plugin zero2 …
"""

import sys

try:
    from colossal_llama.utils.errors import run_main
except KeyboardInterrupt:  # as run_main ends from then on
    sys.stderr.write("interrupted\n")
    sys.exit(130)

if __name__ == "__main__":
    run_main("colossal_llama.training.train:main")
