"""Merged models: what a plain computation on whole models gives, row by row by token."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama.model.expansion.new_rows import first_new_row
from colossal_llama.model.merge_models import merge
from colossal_llama.model.merging.arguments import parse_arguments
from colossal_llama.model.pretrained import load_for_inference, stop_token_ids
from colossal_llama.model.weights.model_tensors import INPUT_MATRIX, OUTPUT_MATRIX
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.bin_weights import convert_to_bin
from tests.support.made_data import make_mistral
from tests.support.scripts import run_script

SCRIPT = "colossal_llama/model/merge_models.py"
MATRICES = (INPUT_MATRIX, OUTPUT_MATRIX)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
Make = Callable[..., Path]


def expanded_tokenizer(source: Path, directory: Path, tokens: list[str]) -> Path:
    """A copy of a tokenizer with further tokens behind its own."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def make(llama2: Path, tmp_path: Path) -> Make:
    """Makes a small model: of a seed, a tokenizer, and rows of padding behind it."""

    def made(
        name: str, seed: int, tokenizer: Path = llama2, padding: int = 0, dtype=torch.bfloat16, tied=False, **settings
    ) -> Path:
        directory = tmp_path / name
        loaded = load_tokenizer(tokenizer)
        rows = max(loaded.get_vocab().values()) + 1 + padding
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id}
        config = LlamaConfig(**{"vocab_size": rows, **shape, **ids, "tie_word_embeddings": tied, **settings})
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
        shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
        return directory

    return made


@pytest.fixture
def chat_tokenizer(llama2: Path, tmp_path: Path) -> Path:
    """LLaMA-2's with ChatML: two control tokens, a template, another end, stops."""
    directory = expanded_tokenizer(llama2, tmp_path / "chat_tokenizer", [])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    control = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    tokenizer.save_pretrained(directory)
    settings = {"eos_token_id": [2, tokenizer.eos_token_id], "temperature": 0.7, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return directory


def run(output: Path, models: list[Path], weights: list[float] = (), **options: object) -> dict:
    """Merges as the script does; returns the report."""
    words = ["--models", *models, "--output_dir", output, *(["--weights", *weights] if weights else [])]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    report = merge(parse_arguments([str(word) for word in words]))
    assert json.loads((output / "merge_report.json").read_text()) == report
    return report


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: values for path in directory.glob("*.safetensors") for name, values in load_file(path).items()}


def in_float(directory: Path) -> dict[str, torch.Tensor]:
    return {name: values.double() for name, values in tensors(directory).items()}


def assert_equal_bits(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        assert torch.equal(values.view(torch.uint8), second[name].view(torch.uint8)), name


def test_task_arithmetic_is_what_whole_models_give(make, tmp_path):
    base, one, two = make("base", 0), make("one", 1), make("two", 2, dtype=torch.float32)
    report = run(tmp_path / "out", [one, two], [0.5, -0.25], base=base)
    b, m, n = in_float(base), in_float(one), in_float(two)
    found = tensors(tmp_path / "out")
    assert found.keys() == b.keys()
    for name in b:
        expected = b[name] + 0.5 * (m[name] - b[name]) - 0.25 * (n[name] - b[name])
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], expected.to(torch.bfloat16)), name
    norm = sum(((m[name] - b[name]) ** 2).sum() for name in b if ".mlp." in name).sqrt().item()
    assert report["differences"][str(one)]["mlp"]["norm"] == pytest.approx(norm, rel=1e-9)
    rows = report["rows"]
    assert rows["combined"] == rows["total"] == len(b[INPUT_MATRIX])
    check_written_model(tmp_path / "out", say=pytest.fail)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert model.dtype == torch.bfloat16


def test_an_average_of_checkpoints_in_any_order(make, tmp_path):
    models = [make(f"model{seed}", seed, dtype=torch.float32) for seed in range(3)]
    run(tmp_path / "out", models)
    run(tmp_path / "other_order", models[::-1])
    run(tmp_path / "rounded", models, [0.33, 0.33, 0.33])
    run(tmp_path / "weighted", models, [0.5, 0.75, -0.25])
    whole = [in_float(model) for model in models]
    for name, values in tensors(tmp_path / "out").items():
        parts = [part[name] for part in whole]
        assert torch.equal(values, (sum(parts) / 3).float()) or torch.allclose(values.double(), sum(parts) / 3)
        for other in ("other_order", "rounded"):
            assert torch.allclose(tensors(tmp_path / other)[name], values, rtol=1e-6, atol=1e-9)
        weighted = 0.5 * parts[0] + 0.75 * parts[1] - 0.25 * parts[2]
        assert torch.allclose(tensors(tmp_path / "weighted")[name].double(), weighted, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_of_one_gives_a_model_back_bit_for_bit(make, llama2, tmp_path, dtype):
    base = make("base", 0, dtype=dtype)
    larger = expanded_tokenizer(llama2, tmp_path / "larger", ["你好", "世界"])
    model = make("model", 1, larger, padding=5, dtype=dtype)
    weights = load_file(model / "model.safetensors")
    for values in weights.values():  # whatever arithmetic could change: zeros of both signs, far exponents
        values.view(-1)[:4] = torch.tensor([0.0, -0.0, 6e-8, -1e4], dtype=dtype)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    run(tmp_path / "model_again", [model], [1], base=base)
    assert_equal_bits(tmp_path / "model_again", model)
    run(tmp_path / "base_and_nothing", [model], [0], base=base, tokenizer_of="base")
    assert_equal_bits(tmp_path / "base_and_nothing", base)
    run(tmp_path / "same", [base, model], [0.3, 0], base=base, tokenizer_of="base")
    assert_equal_bits(tmp_path / "same", base)
    run(tmp_path / "mean_of_one", [model, model], [0.7, 0.3], tokenizer_of=model)
    assert_equal_bits(tmp_path / "mean_of_one", model)


def test_rows_are_matched_by_token(make, llama2, chat_tokenizer, tmp_path):
    larger = expanded_tokenizer(llama2, tmp_path / "larger", ["你好", "世界", "<|im_start|>"])
    base, chat = make("base", 0, padding=3), make("chat", 1, chat_tokenizer, padding=2)
    continued = make("continued", 2, larger, padding=4)
    report = run(tmp_path / "out", [continued, chat], [1, 0.5], base=base)
    vocabularies = [load_tokenizer(path).get_vocab() for path in (base, continued, chat)]
    whole = [in_float(path) for path in (base, continued, chat)]
    target = load_tokenizer(tmp_path / "out").get_vocab()
    assert target == {**vocabularies[1], "<|im_end|>": max(vocabularies[1].values()) + 1}
    found = tensors(tmp_path / "out")
    assert len(found[INPUT_MATRIX]) == len(whole[1][INPUT_MATRIX])  # the token took a row of padding
    for matrix in MATRICES:
        for token, token_id in target.items():
            pairs = zip(whole, vocabularies, strict=True)
            b, t, c = (part[matrix][ids[token]] if token in ids else None for part, ids in pairs)
            if b is not None:
                expected = b + (t - b) + 0.5 * (c - b)
            elif t is not None and c is not None:
                expected = (t + 0.5 * c) / 1.5
            else:
                expected = t if t is not None else c
            assert torch.equal(found[matrix][token_id], expected.to(torch.bfloat16)), token
        last = len(found[matrix]) - 1
        assert torch.equal(found[matrix][last], tensors(continued)[matrix][last])
    rows = report["rows"]
    known = len(vocabularies[0])
    assert rows["combined"] == known
    # 3 rows of padding of the result have no padding row of the same number in the others
    assert rows["only_in"] == {str(continued): 2 + rows["padding"], str(chat): 1}
    assert rows["mean_without_base"] == 1
    assert rows["padding"] == 3
    assert rows["total"] == known + 2 + 1 + 1 + 3
    assert rows["moved"][str(chat)] == 2
    assert not any(rows["left_out"].values())
    assert report["added_tokens"] == ["<|im_end|>"]


def test_the_same_token_under_other_ids(make, llama2, tmp_path):
    renumbered = make_mistral(tmp_path / "renumbered")
    base, model = make("base", 0), make("model", 1, renumbered)
    report = run(tmp_path / "out", [model], [0.5], base=base, tokenizer_of="base")
    known, others = load_tokenizer(base).get_vocab(), load_tokenizer(model).get_vocab()
    shared = [token for token in known if token in others]
    b, m = in_float(base)[INPUT_MATRIX], in_float(model)[INPUT_MATRIX]
    expected = (b[[known[token] for token in shared]] + m[[others[token] for token in shared]]) / 2
    found = tensors(tmp_path / "out")[INPUT_MATRIX]
    assert torch.equal(found[[known[token] for token in shared]], expected.to(torch.bfloat16))
    assert report["rows"]["moved"][str(model)] == sum(known[token] != others[token] for token in shared) > 100
    assert report["rows"]["left_out"][str(model)] == len(others.keys() - known.keys()) > 0


def test_the_chat_format_comes_with_the_chat_vector(make, llama2, chat_tokenizer, tmp_path):
    larger = expanded_tokenizer(llama2, tmp_path / "larger", ["你好"])
    base, continued, chat = make("base", 0), make("continued", 1, larger), make("chat", 2, chat_tokenizer)
    (continued / "init_report.json").write_text(json.dumps({"rows": {"kept": len(load_tokenizer(base)), "new": 1}}))
    report = run(tmp_path / "out", [continued, chat], [1, 1], base=base)
    assert (report["tokenizer_of"], report["chat_of"]) == (str(continued), str(chat))
    model, tokenizer = load_for_inference(tmp_path / "out", "auto", torch.device("cpu"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == end == len(load_tokenizer(continued)) + 1
    assert stop_token_ids(model, tokenizer) == {2, end}
    assert model.config.eos_token_id == end
    assert model.generation_config.temperature == 0.7
    chats = [{"role": "user", "content": "Hello 你好"}]
    ids = tokenizer.apply_chat_template(chats, return_dict=True)["input_ids"]
    assert ids[0] == end - 1
    assert end in ids
    assert tokenizer.convert_tokens_to_ids("你好") in ids
    assert first_new_row(tmp_path / "out") == len(load_tokenizer(base))
    assert (tmp_path / "out" / "init_report.json").is_file()
    plain = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert plain.get_vocab() == tokenizer.get_vocab()
    assert plain.chat_template == CHATML
    (chat / "generation_config.json").unlink()
    run(tmp_path / "without_settings", [continued, chat], [1, 1], base=base)
    settings = json.loads((tmp_path / "without_settings" / "generation_config.json").read_text())
    assert set(settings["eos_token_id"]) == {2, end}
    assert "_from_model_config" not in settings  # which makes generate() take the one id of config.json

    report = run(tmp_path / "without", [continued, chat], [1, 1], base=base, chat_of="none")
    assert report["chat_of"] is None
    kept = load_tokenizer(tmp_path / "without")
    assert kept.get_vocab() == load_tokenizer(continued).get_vocab()
    assert kept.chat_template is None
    assert report["rows"]["left_out"][str(chat)] == 2


def test_a_llama3_tokenizer_gets_the_tokens_of_the_chat_model(make, made_data, tmp_path):
    source = made_data / "tokenizers" / "llama3-base"
    chat_tokenizer = expanded_tokenizer(source, tmp_path / "chat_tokenizer", ["<|im_start|>", "<|im_end|>"])
    (chat_tokenizer / "chat_template.jinja").write_text(CHATML)
    base, chat = make("base", 0, source), make("chat", 1, chat_tokenizer)
    continued = make("continued", 2, expanded_tokenizer(source, tmp_path / "larger", ["<x>", "<y>", "<z>"]))
    run(tmp_path / "out", [continued, chat], [1, 1], base=base)
    tokenizer = load_tokenizer(tmp_path / "out")
    size = len(load_tokenizer(continued))
    assert tokenizer("<|im_start|>hello<z>", add_special_tokens=False).input_ids[0] == size
    added = {"<|im_start|>": size, "<|im_end|>": size + 1}
    assert tokenizer.get_vocab() == load_tokenizer(continued).get_vocab() | added
    alone = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))  # as programs do that read no settings
    assert alone.get_vocab(with_added_tokens=True) == tokenizer.get_vocab()


def test_two_different_templates_are_no_guess(make, llama2, chat_tokenizer, tmp_path, capsys):
    other = shutil.copytree(chat_tokenizer, tmp_path / "other_tokenizer")
    for path in (other / "chat_template.jinja", other / "tokenizer_config.json"):
        if path.is_file():
            path.write_text(path.read_text().replace("im_start", "im_begin"))
    larger = expanded_tokenizer(llama2, tmp_path / "larger", ["a1", "b2", "c3", "d4"])
    base, plain = make("base", 0), make("plain", 1, larger)
    one, two = make("one", 2, chat_tokenizer), make("two", 3, other)
    with pytest.raises(UserError, match=r"those of .*one, .*two differ: give --chat_of"):
        run(tmp_path / "out", [plain, one, two], [1, 1, 1], base=base)
    report = run(tmp_path / "out", [plain, one, two], [1, 1, 1], base=base, chat_of=two)
    assert report["chat_of"] == str(two)
    with pytest.raises(UserError, match="has no chat template"):
        run(tmp_path / "none", [plain, one], [1, 1], base=base, chat_of=plain)
    capsys.readouterr()
    run(tmp_path / "kept", [one, two], [1, 1], base=base)
    assert "--chat_of takes it" in capsys.readouterr().out


def test_tied_and_untied_models(make, tmp_path, capsys):
    base, model = make("base", 0, tied=True), make("model", 1)
    run(tmp_path / "out", [model], [0.5], base=base)
    b, m, found = in_float(base), in_float(model), tensors(tmp_path / "out")
    assert OUTPUT_MATRIX not in b
    for name in MATRICES:
        assert torch.equal(found[name], ((b[INPUT_MATRIX] + m[name]) / 2).to(torch.bfloat16))
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert "the result has two matrices" in capsys.readouterr().out
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tied = make("tied", 2, tied=True)
    run(tmp_path / "both_tied", [tied], [0.5], base=base)
    assert OUTPUT_MATRIX not in tensors(tmp_path / "both_tied")


@pytest.mark.parametrize("layout", ["sharded", "bin", "sharded bin", "without output layer"])
def test_every_layout_of_files(make, tmp_path, layout):
    base, model = make("base", 0, tied=True), make("model", 1, tied=True)
    run(tmp_path / "expected", [model], [0.5], base=base)
    if "sharded" in layout:
        LlamaForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="60KB")
        (model / "model.safetensors").unlink(missing_ok=True)
        assert len(list(model.glob("*.safetensors"))) > 1
    if "bin" in layout:
        convert_to_bin(model)
    if layout == "without output layer":
        weights = {name.removeprefix("model."): values for name, values in tensors(model).items()}
        save_file(weights, model / "model.safetensors", {"format": "pt"})
    run(tmp_path / "out", [model], [0.5], base=base)
    assert_equal_bits(tmp_path / "out", tmp_path / "expected")


def test_the_dtype_is_the_bases_or_the_given_one(make, tmp_path):
    base, model = make("base", 0, dtype=torch.float16), make("model", 1, dtype=torch.float32)
    run(tmp_path / "out", [model], [0.5], base=base)
    assert {values.dtype for values in tensors(tmp_path / "out").values()} == {torch.float16}
    run(tmp_path / "float32", [model], [0.5], base=base, dtype="float32")
    assert {values.dtype for values in tensors(tmp_path / "float32").values()} == {torch.float32}
    assert json.loads((tmp_path / "float32" / "config.json").read_text())["torch_dtype"] == "float32"
    large = {name: 1e7 * values for name, values in tensors(model).items()}
    save_file(large, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="beyond the range of float16: give --dtype bfloat16"):
        run(tmp_path / "beyond", [model], [1], base=base)
    assert not (tmp_path / "beyond").exists()


def test_what_does_not_fit_together_is_refused_at_once(make, made_data, tmp_path):
    base, adapter = make("base", 0), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "modelling").mkdir(parents=True)
    quantized = make("quantized", 1)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(UserError) as refused:
        run(tmp_path / "out", [adapter, tmp_path / "run", quantized], [1, 1, 1], base=base)
    words = ("export_model --model_path", "run/modelling", "quantized model")
    assert all(word in problem for word, problem in zip(words, refused.value.problems, strict=True))
    deeper = make("deeper", 2, num_hidden_layers=3, rope_theta=5e5)
    scaled = make("scaled", 3, rope_scaling={"rope_type": "linear", "factor": 2.0})
    other_words = make("other_words", 4, made_data / "tokenizers" / "llama3-base")
    with pytest.raises(UserError) as refused:
        run(tmp_path / "out", [deeper, scaled, other_words], [1, 1, 1], base=base)
    found = "\n".join(refused.value.problems)
    assert "num_hidden_layers is 2 and 3" in found
    assert "rope_theta is 10000.0 and 500000.0" in found
    assert "rope_scaling is None and {'rope_type': 'linear', 'factor': 2.0}; weights trained for other rotary" in found
    assert "not of one family" in found
    assert len(refused.value.problems) == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", [1, 0])
def test_nan_is_refused_and_leaves_nothing(make, tmp_path, weight):
    base, model = make("base", 0), make("model", 1)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"has NaN or Inf in model\.norm\.weight"):
        run(tmp_path / "out", [model], [weight], base=base)
    assert sorted(tmp_path.iterdir()) == before


def test_command_lines(make, tmp_path, project_root):
    base, model = make("base", 0), make("model", 1)

    def problems(*words: object) -> str:
        done = run_script(project_root, SCRIPT, *words)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    (tmp_path / "loop").symlink_to("loop")
    said = problems("--models", model, "--output_dir", tmp_path / "loop" / "out", "--chat_of", tmp_path / "loop")
    assert "cannot be created" in said or "symbolic links" in said
    wrong = ("--weights", 1, "--output_dir", base, "--tokenizer_of", "x", "--chat_of", "y")
    said = problems("--models", model, model, *wrong)
    for part in ("--weights has 1 numbers for 2", "exists already", "--tokenizer_of x is none", "--chat_of y is none"):
        assert part in said
    out = tmp_path / "out"
    assert "sum 2, and a sum of whole models needs 1: give 0.5 0.5" in problems(
        "--models", base, model, "--weights", 1, 1, "--output_dir", out
    )
    assert "nothing to add" in problems("--models", model, "--output_dir", out)
    assert "--weights is missing" in problems("--models", model, "--base", base, "--output_dir", out)
    assert "lies in the model's directory" in problems("--models", model, "--base", base, "--output_dir", base / "out")
    assert "not a finite number" in problems("--models", model, "--base", base, "--weights", "nan", "--output_dir", out)
    done = run_script(
        project_root, SCRIPT, "--base", base, "--models", model, "--weights", "-1e-3", "--output_dir", out
    )
    assert done.returncode == 0, done.stderr
    assert "rows" in done.stdout
    report = json.loads((out / "merge_report.json").read_text())
    assert report["models"][0]["weight"] == -0.001
    assert len({report["base"]["fingerprint"], report["models"][0]["fingerprint"]}) == 2


@pytest.mark.slow
def test_a_model_is_never_in_memory(make, llama2, tmp_path, project_root):
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    base, one = (make(name, seed, **shape) for seed, name in enumerate(("base", "one")))
    done = run_script(
        project_root, SCRIPT, "--base", base, "--models", one, "--weights", 0.5, "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["weight_bytes"] > 400e6
    assert report["peak_memory_bytes"] < 250e6
