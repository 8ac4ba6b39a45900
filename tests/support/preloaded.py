"""What train.py imports, for processes that are forked afterwards (tests/support/ranks.py)."""

import gc

import datasets  # noqa: F401
import transformers  # noqa: F401
from peft import PeftModel  # noqa: F401

from colossal_llama.engine import launch

launch.prepare_engine()

from colossal_llama.training import run_builder  # noqa: E402, F401

# benchmarks/train_many.py collects garbage after every run: 0.24 s of a core without this, for half
# a million objects.
gc.freeze()
