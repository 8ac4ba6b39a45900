"""New embedding rows: right means, old rows unchanged, every file layout, a loadable result."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.model.config_keys import portable_config
from colossal_llama.model.expansion.mean_init import Constituents, mean_rows
from colossal_llama.model.expansion.new_tokens import split_into_source_pieces
from colossal_llama.model.expansion.resize_embeddings import INPUT_MATRIX, OUTPUT_MATRIX, create_model, plan_expansion
from colossal_llama.model.weights.stored_tensors import StoredTensor, bytes_of, shape_of
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.bin_weights import convert_to_bin
from tests.support.scripts import run_script

# 龘 falls to its three bytes in LLaMA-2; ▁你好 has a space in front in the text.
LLAMA2_PIECES = ["你好", "▁你好", "人工智能", "越来越", "龘", "hello▁wor", "深度学习"]
WIDTH = 64


def expand_by_hand(source: Path, target: Path, pieces: list[str], padded_vocab_size: int | None = None) -> Path:
    """A target tokenizer made by appending pieces to the files; it cannot encode with them."""
    shutil.copytree(source, target)
    if (target / "tokenizer.model").is_file():
        model = ModelProto.FromString((target / "tokenizer.model").read_bytes())
        for piece in pieces:
            model.pieces.add(piece=piece, score=-1e6)
        (target / "tokenizer.model").write_bytes(model.SerializeToString())
    else:
        definition = json.loads((target / "tokenizer.json").read_text("utf-8"))
        vocabulary = definition["model"]["vocab"]
        # An added token that the vocabulary lacks is given the id after it, whatever the file says:
        # it would move.
        vocabulary.update({token["content"]: token["id"] for token in definition["added_tokens"]})
        vocabulary.update({piece: len(vocabulary) + i for i, piece in enumerate(pieces)})
        (target / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False), "utf-8")
    if padded_vocab_size is not None:
        (target / "expansion_report.json").write_text(json.dumps({"padded_vocab_size": padded_vocab_size}))
    return target


def tiny_model(rows: int, dtype: torch.dtype = torch.bfloat16, tied: bool = False) -> LlamaForCausalLM:
    """A random LLaMA of one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        torch_dtype=dtype,
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture(scope="module")
def rows(llama2: Path) -> int:
    """The source's vocabulary size: 32,000 with the real tokenizer."""
    return len(cached_tokenizer(llama2))


@pytest.fixture(scope="module")
def target_tokenizer(llama2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expand_by_hand(llama2, tmp_path_factory.mktemp("tokenizer") / "expanded", LLAMA2_PIECES)


def save_model(model: LlamaForCausalLM, tokenizer: Path, directory: Path, layout: str = "safetensors") -> Path:
    """Saves model and tokenizer; the layout is what `layout` says."""
    matrix_bytes = model.get_input_embeddings().weight.nbytes
    shard_size = 3 * matrix_bytes // 4 if "sharded" in layout else "10GB"  # each large matrix has its own shard
    model.save_pretrained(directory, max_shard_size=shard_size)
    if "bin" in layout:
        convert_to_bin(directory)
    if layout == "old bin":
        weights = torch.load(directory / "pytorch_model.bin", weights_only=True)
        torch.save(weights, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return directory


def all_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory of safetensors files, as the files hold it."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


cached_tokenizer = functools.cache(load_tokenizer)


def expected_mean(matrix: torch.Tensor, tokenizer_directory: Path, piece: str) -> torch.Tensor:
    """The reference: the piece's text encoded after a line break, whose tokens are dropped."""
    tokenizer = cached_tokenizer(tokenizer_directory)
    ids = tokenizer("\n" + piece.replace("▁", " "), add_special_tokens=False).input_ids
    line_break = tokenizer("\n", add_special_tokens=False).input_ids
    assert ids[: len(line_break)] == line_break
    return matrix[ids[len(line_break) :]].double().mean(dim=0)


def run_init_model(project_root: Path, **arguments: object) -> subprocess.CompletedProcess:
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    return run_script(project_root, "colossal_llama/model/init_model.py", *words)


@pytest.mark.parametrize(
    ("layout", "dtype", "tied"),
    [
        ("safetensors", torch.float32, True),
        ("sharded safetensors", torch.bfloat16, False),
        ("bin", torch.float16, False),
        ("sharded bin", torch.bfloat16, True),
        ("old bin", torch.float16, True),
    ],
)
def test_rows_in_every_layout(llama2, rows, target_tokenizer, tmp_path, layout, dtype, tied):
    source_model = tiny_model(rows, dtype, tied)
    source = save_model(source_model, llama2, tmp_path / "source", layout)
    assert len(list(source.glob("*.bin" if "bin" in layout else "*.safetensors"))) == (
        2 + (not tied) if "sharded" in layout else 1
    )
    create_model(plan_expansion(source, target_tokenizer), "mean", tmp_path / "target")

    old, new = source_model.state_dict(), all_tensors(tmp_path / "target")
    assert set(new) >= set(old) - {OUTPUT_MATRIX}
    for name in (INPUT_MATRIX, *([] if tied else [OUTPUT_MATRIX])):
        assert new[name].dtype == dtype
        assert new[name].shape == (rows + len(LLAMA2_PIECES), WIDTH)
        assert torch.equal(new[name][:rows], old[name])
        for row, piece in zip(new[name][rows:], LLAMA2_PIECES, strict=True):
            expected = expected_mean(old[name], llama2, piece)
            assert torch.allclose(row.double(), expected, rtol=2**-7, atol=1e-6), piece
    for name in set(old) - {INPUT_MATRIX, OUTPUT_MATRIX}:
        assert torch.equal(new[name], old[name]), name

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target", torch_dtype="auto")
    assert loaded.dtype == dtype
    assert (
        loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "target")) == rows + len(LLAMA2_PIECES)
    )
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, new[INPUT_MATRIX if tied and name == OUTPUT_MATRIX else name]), name
    ids = torch.tensor([[1, rows // 2, rows - 130, rows - 1]])
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(source, torch_dtype="auto")(ids).logits
        assert torch.allclose(loaded(ids).logits[..., :rows], before, atol=2**-7)  # matrix products of other shapes


def test_pieces_of_a_byte_level_vocabulary(any_data, tmp_path):
    """LLaMA-3: a piece is split as its text; one that ends within a character, as bytes."""
    source_directory = any_data / "tokenizers" / "llama3-base"
    source = load_tokenizer(source_directory)
    alphabet = byte_level_alphabet()
    texts = ["人工智能很好", " 越来越多的人", "龘龘", " Bundesverfassungsgericht"]
    bytes_only = ["中文龘".encode()[:-1], "龘".encode()[1:]]
    pieces = ["".join(alphabet[byte] for byte in text.encode()) for text in texts]
    pieces += ["".join(alphabet[byte] for byte in data) for data in bytes_only]
    target = load_tokenizer(expand_by_hand(source_directory, tmp_path / "target", pieces))
    parts = split_into_source_pieces(source, target, range(len(source), len(target)))
    assert parts[: len(texts)] == [source(text, add_special_tokens=False).input_ids for text in texts]
    backwards = {piece: byte for byte, piece in alphabet.items()}
    for ids, data in zip(parts[len(texts) :], bytes_only, strict=True):
        assert bytes(backwards[c] for piece in source.convert_ids_to_tokens(ids) for c in piece) == data


def byte_level_alphabet() -> dict[int, str]:
    """Every byte → GPT-2's printable stand-in for it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def split_of_added_tokens(llama2: Path, *tokens: str) -> list[list[str]]:
    target = AutoTokenizer.from_pretrained(llama2)
    target.add_special_tokens({"additional_special_tokens": list(tokens)})
    source = cached_tokenizer(llama2)
    parts = split_into_source_pieces(source, target, range(len(source), len(source) + len(tokens)))
    return [source.convert_ids_to_tokens(ids) for ids in parts]


def test_added_tokens_are_split_as_text(llama2):
    """Also one that holds a control token of the source."""
    plain, with_control = split_of_added_tokens(llama2, "<|assistant|>", "</s> end")
    assert ["▁", *plain] == cached_tokenizer(llama2).tokenize("<|assistant|>")
    assert "".join(with_control) == "</s>▁end"
    assert "</s>" not in with_control


def test_added_tokens_are_split_into_llama2_s_own_pieces(shared_data):
    assert split_of_added_tokens(shared_data / "tokenizers" / "llama2", "<|assistant|>", "</s> end") == [
        ["<", "|", "ass", "istant", "|", ">"],
        ["</", "s", ">", "▁end"],
    ]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 29), max_size=6), min_size=1, max_size=40),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    method=st.sampled_from(["mean", "norm_matched_mean"]),
)
def test_mean_rows_equal_a_plain_loop(rows, dtype, method):
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    default = np.full(8, 0.5)
    result = np.concatenate(list(mean_rows(stored(matrix), Constituents.of(rows), method, default)))
    assert result.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert result.shape == (len(rows), 8)
    for row, ids in zip(torch.from_numpy(result), rows, strict=True):
        expected = matrix[ids].double().mean(dim=0) if ids else torch.from_numpy(default)
        if ids and method == "norm_matched_mean":
            expected *= matrix[ids].double().norm(dim=1).mean() / expected.norm()
        assert torch.allclose(row.double(), expected, rtol=1e-5, atol=1e-6)


def stored(tensor: torch.Tensor) -> StoredTensor:
    """A PyTorch tensor as a weight file would give it."""
    shape = shape_of(tensor)
    return StoredTensor.of(bytes_of(tensor).view(shape.storage_dtype).reshape(shape.shape), shape.dtype)


def test_means_do_not_depend_on_the_block_size(monkeypatch):
    matrix = stored(torch.randn(50, 8))
    rows = Constituents.of([[i % 50, (3 * i) % 50] for i in range(40)] + [[]])
    whole = np.concatenate(list(mean_rows(matrix, rows, "mean", np.zeros(8))))
    monkeypatch.setattr("colossal_llama.model.expansion.mean_init._ROWS_PER_BLOCK", 7)
    pieces = list(mean_rows(matrix, rows, "mean", np.zeros(8)))
    assert len(pieces) == 6
    assert np.array_equal(np.concatenate(pieces), whole)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=50),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_values_are_rounded_as_pytorch_rounds_them(values, dtype):
    wanted = torch.tensor(values, dtype=torch.float32).to(dtype)
    tensor = stored(torch.zeros(1, dtype=dtype))
    bits = tensor.from_float(np.array(values, np.float32))
    assert torch.equal(
        torch.from_numpy(bits.view(np.uint8)).view(dtype).nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0)
    )
    back = torch.from_numpy(tensor.to_float(bits).astype(np.float64))
    assert torch.equal(back.nan_to_num(nan=7.0), wanted.double().nan_to_num(nan=7.0))


def test_padded_source_and_padded_target(llama2, rows, tmp_path):
    """Padding of the source is dropped; the target's is the mean of all rows of the vocabulary."""
    padded_rows = rows + 128
    source_model = tiny_model(rows + 64, torch.float32)
    source = save_model(source_model, llama2, tmp_path / "source")
    tokenizer = expand_by_hand(llama2, tmp_path / "tokenizer", LLAMA2_PIECES, padded_vocab_size=padded_rows)
    report = create_model(plan_expansion(source, tokenizer), "mean", tmp_path / "target")
    assert report["rows"] == {
        "kept": rows,
        "dropped_source_padding": 64,
        "new": len(LLAMA2_PIECES),
        "new_without_constituents": 0,
        "padding": 128 - len(LLAMA2_PIECES),
        "total": padded_rows,
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert model.config.vocab_size == padded_rows
    for matrix, old in zip(
        (model.get_input_embeddings().weight, model.lm_head.weight),
        (source_model.get_input_embeddings().weight, source_model.lm_head.weight),
        strict=True,
    ):
        assert matrix.shape[0] == padded_rows
        assert torch.equal(matrix[:rows], old[:rows])
        assert torch.allclose(matrix[rows].double(), expected_mean(old, llama2, "你好"), atol=1e-7)
        padding = matrix[rows + len(LLAMA2_PIECES) :]
        assert torch.allclose(padding, old[:rows].double().mean(dim=0).float().expand_as(padding), atol=1e-7)


def test_script_completes_the_tokenizers_directory(project_root, llama2, rows, tmp_path):
    source = save_model(tiny_model(rows), llama2, tmp_path / "source", "sharded safetensors")
    tokenizer = expand_by_hand(llama2, tmp_path / "tokenizer", LLAMA2_PIECES)
    before = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    arguments = {
        "source_model_and_tokenizer_path": source,
        "target_tokenizer_path": tokenizer,
        "target_model_path": tokenizer,
    }
    done = run_init_model(project_root, **arguments, init_method="norm_matched_mean")
    assert done.returncode == 0, done.stderr
    assert f"{rows + 7:,} rows: {rows:,} kept, 7 new" in done.stdout
    after = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    assert all(after[name] == data for name, data in before.items())
    assert not [name for name in after if name.startswith(".")]
    report = json.loads(after["init_report.json"])
    assert report["init_method"] == "norm_matched_mean"
    assert report["peak_memory_bytes"] > 0
    index = json.loads(after["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in all_tensors(tokenizer).values())
    model = AutoModelForCausalLM.from_pretrained(tokenizer)
    ids = cached_tokenizer(llama2).convert_tokens_to_ids(["你", "好"])
    constituents = all_tensors(source)[INPUT_MATRIX][ids].float()
    new = model.get_input_embeddings().weight[rows].float()
    assert new.norm().item() == pytest.approx(constituents.norm(dim=1).mean().item(), rel=0.01)

    again = run_init_model(project_root, **arguments)
    assert again.returncode == 2
    assert "already holds a model" in again.stderr
    assert {path.name: path.read_bytes() for path in tokenizer.iterdir()} == after


@pytest.mark.parametrize("same_directory", [True, False])
def test_an_error_while_writing_leaves_nothing(llama2, rows, tmp_path, same_directory, monkeypatch):
    source = save_model(tiny_model(rows), llama2, tmp_path / "source", "sharded safetensors")
    tokenizer = expand_by_hand(llama2, tmp_path / "tokenizer", LLAMA2_PIECES)
    before = sorted(tmp_path.rglob("*"))
    plan = plan_expansion(source, tokenizer)
    last = source / "model-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(Exception, match=r"(?i)incomplete|size|length"):
        create_model(plan, "mean", tokenizer if same_directory else tmp_path / "target")
    assert sorted(tmp_path.rglob("*")) == before


def test_special_ids_follow_the_tokenizer(llama2, rows, target_tokenizer, tmp_path):
    """Old conversions of LLaMA have bos 0, eos 1, pad -1; eos lists with the right id stay."""
    source = save_model(tiny_model(rows), llama2, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1})
    )
    (source / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 13], "top_p": 0.9})
    )
    report = create_model(plan_expansion(source, target_tokenizer), "mean", tmp_path / "target")
    written = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (1, 2, None)
    portable = portable_config(config)
    assert written == {**portable, "vocab_size": rows + 7, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    generation = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 13], "top_p": 0.9}
    assert len(report["config_corrections"]) == 3


@pytest.mark.parametrize("stored_as", ["text", "list", "jinja", "none"])
@pytest.mark.parametrize("same_directory", [False, True])
def test_the_sources_chat_template_stays(llama2, rows, target_tokenizer, tmp_path, stored_as, same_directory):
    """Also where the expanded tokenizer was made without it; one of its own goes before."""
    template = "{{ messages[0].content }} 你好"
    source = save_model(tiny_model(rows), llama2, tmp_path / "source")
    settings = source / "tokenizer_config.json"
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": template}]
    written = {"text": template, "list": named}.get(stored_as)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | ({"chat_template": written} if written else {})))
    if stored_as == "jinja":
        (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = shutil.copytree(target_tokenizer, tmp_path / "tokenizer")
    target = tokenizer if same_directory else tmp_path / "target"
    create_model(plan_expansion(source, tokenizer), "mean", target)
    assert AutoTokenizer.from_pretrained(target).chat_template == (None if stored_as == "none" else template)

    if not same_directory:
        (tokenizer / "chat_template.jinja").write_text("its own")
        create_model(plan_expansion(source, tokenizer), "mean", tmp_path / "own")
        assert AutoTokenizer.from_pretrained(tmp_path / "own").chat_template == "its own"


def _drop_output_matrix(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    del tensors[OUTPUT_MATRIX]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})


def _truncate(source: Path) -> None:
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:5000])


def _shrink_config(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_output_matrix, "no tensor lm_head.weight"),
        (_truncate, "model.safetensors cannot be read"),
        (_shrink_config, "vocab_size in config.json is 1000"),
        (lambda source: (source / "config.json").unlink(), "config.json is not there"),
        (lambda source: (source / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda source: (source / "model.safetensors").unlink(), "holds no model weights"),
        (lambda source: [p.unlink() for p in source.glob("tokenizer*")], "holds no tokenizer"),
    ],
)
def test_damaged_sources_are_named(llama2, rows, target_tokenizer, tmp_path, damage, message):
    source = save_model(tiny_model(rows), llama2, tmp_path / "source")
    damage(source)
    with pytest.raises(UserError, match=message):
        plan_expansion(source, target_tokenizer)


def test_a_missing_shard_is_named(llama2, rows, target_tokenizer, tmp_path):
    source = save_model(tiny_model(rows), llama2, tmp_path / "source", "sharded bin")
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(UserError, match=r"not there: pytorch_model-00002-of-00003\.bin"):
        plan_expansion(source, target_tokenizer)


def test_all_bad_arguments_are_reported_at_once(project_root, llama2, target_tokenizer, tmp_path):
    (tmp_path / "taken").mkdir()
    done = run_init_model(
        project_root,
        source_model_and_tokenizer_path=tmp_path / "nowhere",
        target_tokenizer_path=target_tokenizer,
        target_model_path=tmp_path / "taken",
        eval_bytes=0,
    )
    assert done.returncode == 2
    for part in ("nowhere does not exist", "taken exists already", "--eval_bytes"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokenizer_that_is_no_extension_is_refused(project_root, any_data, llama2, rows, tmp_path):
    source = save_model(tiny_model(rows), llama2, tmp_path / "source")
    done = run_init_model(
        project_root,
        source_model_and_tokenizer_path=source,
        target_tokenizer_path=any_data / "tokenizers" / "llama3-base",
        target_model_path=tmp_path / "target",
    )
    assert done.returncode == 2
    assert "does not extend the source model's" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("family", ["llama2", "llama3-base"])
def test_the_contracts_example_from_tokenizer_to_model(project_root, any_data, tmp_path, family):
    """init_tokenizer.py, then init_model.py into the same directory: new rows are means."""
    source_tokenizer = any_data / "tokenizers" / family
    source_rows = len(cached_tokenizer(source_tokenizer))
    source = save_model(tiny_model(source_rows, torch.float32), source_tokenizer, tmp_path / "source")
    (tmp_path / "pieces.jsonl").write_text('{"piece": "人工智能公司"}\n{"piece": "你好啊"}\n', "utf-8")
    script = project_root / "colossal_llama" / "tokenizer" / "init_tokenizer.py"
    options = ["--source_tokenizer_dir", source_tokenizer, "--target_tokenizer_dir", tmp_path / "target"]
    options += ["--expand_tokens_file", tmp_path / "pieces.jsonl"]
    subprocess.run([sys.executable, script, *options], check=True, capture_output=True)
    done = run_init_model(
        project_root,
        source_model_and_tokenizer_path=source,
        target_tokenizer_path=tmp_path / "target",
        target_model_path=tmp_path / "target",
    )
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    old = all_tensors(source)[INPUT_MATRIX]
    for text in ("人工智能公司", "你好啊"):
        ids = tokenizer("\n" + text, add_special_tokens=False).input_ids
        assert ids[-1] >= source_rows, tokenizer.convert_ids_to_tokens(ids)
        row = model.get_input_embeddings().weight[ids[-1]]
        assert torch.allclose(row.double(), expected_mean(old, source_tokenizer, text), atol=1e-6)
