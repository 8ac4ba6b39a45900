"""Damaged models and adapters: config.json, generation_config.json, weight files and their index.

Each trial damages a copy in one way, and runs train.py, inference or the initialisation of an
expanded model on it. It must be refused in a sentence, or have the result of the undamaged model.
"""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.campaigns.outcome import PROJECT_ROOT, REFUSED, REPAIRED, WHOLE, WRONG, Ended, Outcome, run_command
from tests.support.damaged_inputs import Base, losses, make_base, train
from tests.support.forked import run_forked

Numbers = random.Random
WEIGHTS, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def _json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -------------------------------------------------------------------------------------- JSON files


def another_kind(name: str):
    def damage(model: Path, numbers: Numbers) -> str:
        content = numbers.choice(["[]", "null", "{}", '"x"', "7", "[" * 9999, '{"a', "\ufeff{}", ""])
        (model / name).write_text(content)
        return f"{name}: {content[:12]}"

    return damage


def cut(name: str):
    def damage(model: Path, numbers: Numbers) -> str:
        size = numbers.randrange((model / name).stat().st_size)
        os.truncate(model / name, size)
        return f"{name} cut to {size} bytes"

    return damage


NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NUMBERS += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta")
VALUES = (-1, 0, 3, 7, 10**6, 2**40, 1.5, "64", None, [], {}, True, float("nan"), float("inf"))


def number(model: Path, numbers: Numbers) -> str:
    key, value = numbers.choice(NUMBERS[:7]), numbers.choice(VALUES)
    _json(model / "config.json", lambda config: config.update({key: value}))
    return f"{key} is {value!r}"


def digit(model: Path, numbers: Numbers) -> str:
    """A digit of a size is another one."""
    key = numbers.choice(NUMBERS[:6])

    def change(config: dict) -> None:
        digits = list(str(config[key]))
        position = numbers.randrange(len(digits))
        digits[position] = numbers.choice([digit for digit in "123456789" if digit != digits[position]])
        config[key] = int("".join(digits))

    _json(model / "config.json", change)
    return f"{key} has another digit"


def missing_key(model: Path, numbers: Numbers) -> str:
    key = numbers.choice(("model_type", *NUMBERS[:6], "rms_norm_eps"))
    _json(model / "config.json", lambda config: config.pop(key))
    return f"{key} is missing"


def other_value(model: Path, numbers: Numbers) -> str:
    key, value = numbers.choice(
        [
            ("rope_scaling", "linear"),
            ("rope_scaling", {"rope_type": "spiral", "factor": 2.0}),
            ("rope_scaling", {"rope_type": "linear", "factor": 0}),
            ("rope_scaling", {"rope_type": "longrope", "short_factor": 3, "long_factor": [1.0]}),
            ("hidden_act", "no_such"),
            ("hidden_act", 3),
            ("torch_dtype", "float17"),
            ("torch_dtype", 3),
            ("pad_token_id", 10**6),
            ("eos_token_id", "2"),
            ("tie_word_embeddings", "yes"),
            ("attention_bias", True),
            ("mlp_bias", True),
            ("attention_dropout", -1),
            ("return_dict", False),
            ("torchscript", True),
            ("model_type", "mistral3000"),
            ("id2label", [1]),
            ("num_labels", 10**13),
            ("pruned_heads", {"0": [1]}),
            ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ]
    )
    _json(model / "config.json", lambda config: config.update({key: value}))
    return f"{key} is {value!r}"


PRIVATE_KEYS = (
    "_attn_implementation_internal",
    "_attn_implementation",
    "_auto_class",
    "configuration_files",
    "to_dict",
    "attribute_map",
    "base_model_tp_plan",
    "auto_map",
)


def private_key(model: Path, numbers: Numbers) -> str:
    key = numbers.choice(PRIVATE_KEYS)
    value = numbers.choice(["user/kernel", {"AutoConfig": "code.Config"}, ["config.4.0.0.json"]])
    _json(model / "config.json", lambda config: config.update({key: value}))
    return f"{key} is {value!r}"


def generation(model: Path, numbers: Numbers) -> str:
    key, value = numbers.choice(
        [("eos_token_id", "2"), ("eos_token_id", [2, "3"]), ("eos_token_id", {}), ("pad_token_id", 1.5), ("_x", 1)]
    )
    _json(model / "generation_config.json", lambda settings: settings.update({key: value}))
    return f"generation_config.json: {key} is {value!r}"


# ------------------------------------------------------------------------------------ weight files


def header_byte(model: Path, numbers: Numbers) -> str:
    content = bytearray((model / WEIGHTS).read_bytes())
    size = int.from_bytes(content[:8], "little")
    position = 8 + numbers.randrange(size)
    content[position] = numbers.randrange(256)
    (model / WEIGHTS).write_bytes(content)
    return f"byte {position} of the header"


def header_size(model: Path, numbers: Numbers) -> str:
    content = bytearray((model / WEIGHTS).read_bytes())
    size = numbers.choice([0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1])
    content[:8] = size.to_bytes(8, "little")
    (model / WEIGHTS).write_bytes(content)
    return f"a header of {size} bytes"


def offsets(model: Path, numbers: Numbers) -> str:
    content = (model / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = numbers.choice(sorted(set(header) - {"__metadata__"}))
    entry = header[name]
    what = numbers.choice(("offsets", "dtype", "shape"))
    if what == "offsets":
        entry["data_offsets"][numbers.randrange(2)] += numbers.choice((-8, 8, 2**40))
    elif what == "dtype":
        entry["dtype"] = numbers.choice(("F16", "I32", "F99", "U8"))
    else:
        entry["shape"] = numbers.choice(([], [2**62, 4], [1], entry["shape"][::-1], [-1]))
    encoded = json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + size :])
    return f"{name}: {entry}"


def tensors(change: Callable[[dict, Numbers], object]):
    def damage(model: Path, numbers: Numbers) -> str:
        content = load_file(model / WEIGHTS)
        done = change(content, numbers)
        save_file(content, model / WEIGHTS, metadata={"format": "pt"})
        return f"{change.__name__}: {done}"

    return damage


def tensor_missing(content: dict, numbers: Numbers) -> object:
    name = numbers.choice(sorted(content))
    del content[name]
    return name


def tensor_of_another_shape(content: dict, numbers: Numbers) -> object:
    name = numbers.choice(sorted(content))
    content[name] = content[name][:-1].clone()
    return name


def layer_too_many(content: dict, numbers: Numbers) -> object:
    for name in [name for name in content if name.startswith("model.layers.1.")]:
        content[name.replace("layers.1.", "layers.2.")] = content[name].clone()
    return None


def bias_too_many(content: dict, numbers: Numbers) -> object:
    content["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    return None


def nan(content: dict, numbers: Numbers) -> object:
    name = numbers.choice(sorted(content))
    content[name].view(-1)[0] = float("nan")
    return name


def weights_missing(model: Path, numbers: Numbers) -> str:
    (model / WEIGHTS).unlink()
    return "no weights"


def index(model: Path, numbers: Numbers) -> str:
    (model / WEIGHTS).rename(model / "model-00001-of-00001.safetensors")
    names = sorted(load_file(model / "model-00001-of-00001.safetensors"))
    file = numbers.choice(["../base.safetensors", "/etc/passwd", "absent.safetensors", 3, None, "", ".."])
    content = numbers.choice(
        [
            {"weight_map": dict.fromkeys(names, file)},
            {"weight_map": {**dict.fromkeys(names, "model-00001-of-00001.safetensors"), names[0]: file}},
            {"weight_map": numbers.choice([[], {}, None, "x", 3])},
            [],
            {},
        ]
    )
    (model / INDEX).write_text(json.dumps(content))
    return f"an index of {str(content)[-60:]}"


def pickled(kind: str):
    def damage(model: Path, numbers: Numbers) -> str:
        content = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        mark = model / "executed"
        if kind == "malicious":
            torch.save({**content, "x": Malicious(mark)}, model / PICKLED)
        elif kind == "plain":
            (model / PICKLED).write_bytes(pickle.dumps(Malicious(mark)))
        elif kind == "no dictionary":
            torch.save(numbers.choice([[1], 3, {"a": 1}, {"a": {"b": torch.ones(1)}}]), model / PICKLED)
        else:
            torch.save(content, model / PICKLED)
            size = (model / PICKLED).stat().st_size
            os.truncate(model / PICKLED, numbers.randrange(size))
        return f"{PICKLED}: {kind}"

    return damage


# ---------------------------------------------------------------------------------------- adapters


def adapter_config(adapter: Path, numbers: Numbers) -> str:
    key, value = numbers.choice(
        [
            ("r", 0),
            ("r", "4"),
            ("r", None),
            ("lora_alpha", "x"),
            ("lora_dropout", 2),
            ("target_modules", 3),
            ("target_modules", [3]),
            ("base_model_name_or_path", 3),
            ("base_model_name_or_path", "/nowhere"),
        ]
    )
    _json(adapter / "adapter_config.json", lambda settings: settings.update({key: value}))
    return f"{key} is {value!r}"


def adapter_pickled(adapter: Path, numbers: Numbers) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Malicious(adapter / "executed")}, adapter / "adapter_model.bin")
    return "adapter_model.bin"


def adapter_tensor(adapter: Path, numbers: Numbers) -> str:
    file = adapter / "adapter_model.safetensors"
    content = load_file(file)
    name = numbers.choice(sorted(content))
    tensor = content.pop(name)
    what = numbers.choice(("missing", "other shape", "other name"))
    if what == "other shape":
        content[name] = tensor[:-1].clone()
    if what == "other name":
        content[f"base_model.model.x.{name}"] = tensor
    save_file(content, file, metadata={"format": "pt"})
    return f"{name}: {what}"


@dataclass(frozen=True)
class Kind:
    """A way to damage a model, or an adapter."""

    name: str
    damage: Callable[[Path, Numbers], str]
    of_adapter: bool = False


KINDS = (
    Kind("config.json: another kind", another_kind("config.json")),
    Kind("config.json cut", cut("config.json")),
    Kind("config.json: number", number),
    Kind("config.json: digit", digit),
    Kind("config.json: missing key", missing_key),
    Kind("config.json: other value", other_value),
    Kind("config.json: private key", private_key),
    Kind("generation_config.json: another kind", another_kind("generation_config.json")),
    Kind("generation_config.json cut", cut("generation_config.json")),
    Kind("generation_config.json: value", generation),
    Kind("weights cut", cut(WEIGHTS)),
    Kind("weights: byte of the header", header_byte),
    Kind("weights: size of the header", header_size),
    Kind("weights: entry of the header", offsets),
    *(
        Kind(f"weights: {change.__name__.replace('_', ' ')}", tensors(change))
        for change in (tensor_missing, tensor_of_another_shape, layer_too_many, bias_too_many, nan)
    ),
    Kind("weights missing", weights_missing),
    Kind("index", index),
    *(Kind(f"pickled weights: {kind}", pickled(kind)) for kind in ("malicious", "plain", "no dictionary", "cut")),
    Kind("adapter_config.json: another kind", another_kind("adapter_config.json"), of_adapter=True),
    Kind("adapter_config.json: value", adapter_config, of_adapter=True),
    Kind("adapter: pickled", adapter_pickled, of_adapter=True),
    Kind("adapter: tensor", adapter_tensor, of_adapter=True),
    Kind("adapter cut", cut("adapter_model.safetensors"), of_adapter=True),
)


@dataclass(frozen=True)
class Undamaged:
    """Base, its trained adapter, and the results of each way to use them."""

    base: Base
    adapter: Path
    results: dict[tuple[str, bool], object]


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Runs so many trials, the kinds in turn."""
    undamaged = _undamaged(work_dir)
    for number_of_trial in range(trials):
        numbers, kind = random.Random(f"{seed} {number_of_trial}"), KINDS[number_of_trial % len(KINDS)]
        place = work_dir / f"trial-{number_of_trial}"
        model = shutil.copytree(undamaged.adapter if kind.of_adapter else undamaged.base.model, place / "model")
        detail = kind.damage(model, numbers)
        use = numbers.choice(("train", "infer") if kind.of_adapter else ("train", "infer", "initialise"))
        ended, found = USES[use](undamaged.base, model, place, kind.of_adapter)
        result = ended.result()
        if (model / "executed").exists():
            result = "EXECUTED"
        elif result == WHOLE and found != undamaged.results[use, kind.of_adapter]:
            result = REPAIRED if "NaN or Inf" in ended.stdout + ended.stderr else WRONG
        detail = f"seed {seed}, trial {number_of_trial}: {use}: {detail}"
        output = "" if result in (REFUSED, WHOLE) else ended.last_lines()
        yield Outcome(kind.name, result, detail, output, ended.duration_s)
        shutil.rmtree(place)


def _undamaged(work_dir: Path) -> Undamaged:
    base = make_base(work_dir / "base")
    (base.model / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    ended = train(base.model, base.parts[:1], work_dir / "lora", "--lora_rank", "4")
    assert ended.code == 0, ended.stderr
    adapter = work_dir / "lora" / "save" / "modelling"
    (adapter / "checksums.json").unlink(missing_ok=True)  # which notices all the kinds at once
    results = {}
    for of_adapter, model in ((False, base.model), (True, adapter)):
        for use in ("train", "infer") if of_adapter else USES:
            ended, results[use, of_adapter] = USES[use](base, model, work_dir / "whole", of_adapter)
            assert ended.code == 0, ended.stderr
            shutil.rmtree(work_dir / "whole", ignore_errors=True)
    return Undamaged(base, adapter, results)


def _train(base: Base, model: Path, place: Path, of_adapter: bool) -> tuple[Ended, object]:
    options = ["--lora_rank", "4", "--load_checkpoint", str(model)] if of_adapter else []
    ended = train(base.model if of_adapter else model, base.parts[:1], place / "run", *options)
    return ended, losses(place / "run") if ended.code == 0 else None


def _infer(base: Base, model: Path, place: Path, of_adapter: bool) -> tuple[Ended, object]:
    words = ["--model_path", model, "--prompt_style", "pretrained", "--input_txt", "the", "--device", "cpu"]
    done = run_forked(PROJECT_ROOT, "inference_example.py", *words, "--max_new_tokens", "8", "--do_sample", "False")
    return Ended(done.returncode, done.stdout, done.stderr, 0.0), done.stdout


def _initialise(base: Base, model: Path, place: Path, of_adapter: bool) -> tuple[Ended, object]:
    """To the model's own tokenizer: all rows are kept."""
    words = ["colossal_llama/model/init_model.py", "--source_model_and_tokenizer_path", str(model)]
    words += ["--target_tokenizer_path", str(base.model), "--target_model_path", str(place / "initialised")]
    ended = run_command(words)
    if ended.code != 0:
        return ended, None
    ended = train(place / "initialised", base.parts[:1], place / "run")
    return ended, losses(place / "run") if ended.code == 0 else None


USES: dict[str, Callable[[Base, Path, Path, bool], tuple[Ended, object]]] = {
    "train": _train,
    "infer": _infer,
    "initialise": _initialise,
}
