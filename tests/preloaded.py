"""What train.py imports, for processes that are forked afterwards (tests/ranks.py)."""

import gc

import datasets  # noqa: F401
import transformers  # noqa: F401
from peft import PeftModel  # noqa: F401

from colossal_llama.utils import engine

engine.prepare_engine()

from colossal_llama.training import session  # noqa: E402, F401

gc.freeze()  # benchmarks/train_many.py collects garbage after every run: 0.24 s of a core without this, for half a million objects
