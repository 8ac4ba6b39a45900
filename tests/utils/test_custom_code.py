"""Code that comes with a model, tokenizer or adapter is never run: each key, every call."""

import ast
import json

import pytest

from colossal_llama.utils.custom_code import refuse_custom_code
from colossal_llama.utils.errors import UserError
from tests.support.project_tree import project_files

REFUSED = [
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map"),
    ("tokenizer_config.json", {"auto_map": ["evil.Tokenizer", None]}, "auto_map"),
    ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}, "auto_map"),
    ("config.json", {"text_config": {"auto_map": {"AutoModel": "other/repository--evil.Model"}}}, "auto_map"),
    ("config.json", {"custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}}}, "custom_pipelines"),
    ("generation_config.json", {"custom_generate": "other/repository"}, "custom_generate"),
    ("config.json", {"_attn_implementation_internal": "flash_attention_2"}, "_attn_implementation_internal"),
    ("config.json", {"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation"),
    ("config.json", [], "a list"),
    ("tokenizer_config.json", "text", "a text"),
    ("adapter_config.json", {"auto_mapping": {"parent_library": "evil"}}, "auto_mapping"),
    ("adapter_config.json", {"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config"),
    ("adapter_config.json", {"tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs"),
]


@pytest.mark.parametrize(("name", "settings", "key"), REFUSED)
def test_code_and_private_settings_are_refused_by_file_and_key(tmp_path, name, settings, key):
    (tmp_path / name).write_text(json.dumps(settings))
    with pytest.raises(UserError) as raised:
        refuse_custom_code(tmp_path)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(f"{tmp_path / name} ")
    assert key in raised.value.problems[0]


def test_what_is_no_json_is_named(tmp_path):
    for name, content in {"config.json": b"{", "tokenizer_config.json": b"\xff{}", "adapter_config.json": b""}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        refuse_custom_code(tmp_path)
    assert len(raised.value.problems) == 3


def test_what_published_models_have_is_accepted(tmp_path):
    configs = {
        "config.json": {"model_type": "llama", "_name_or_path": "meta/x", "_flash_attn_2_enabled": True},
        "tokenizer_config.json": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "auto_map": None},
        "generation_config.json": {"_from_model_config": True},
        "adapter_config.json": {
            "auto_mapping": {"parent_library": "transformers.models.llama.modeling_llama"},
            "megatron_config": None,
            "megatron_core": "megatron.core",
        },
    }
    configs["config.json"] |= {"_attn_implementation_autoset": False, "_attn_implementation_internal": None}
    for name, settings in configs.items():
        (tmp_path / name).write_text(json.dumps(settings))
    refuse_custom_code(tmp_path)
    refuse_custom_code(tmp_path / "absent")


SAFE = {
    ".from_pretrained": ("trust_remote_code", False),
    ".from_config": ("trust_remote_code", False),
    "torch.load": ("weights_only", True),
    "pipeline": ("trust_remote_code", False),
}
NEVER = {
    *("pickle.load", "pickle.loads", "joblib.load", "hub.load", "eval", "exec", "input"),
    *("load_dataset", ".load_dataset"),
    # ColossalAI's own loaders, some of which unpickle
    *(".load_optimizer", ".load_lr_scheduler", "booster.load_model"),
}
NO_CODE_POSSIBLE = {f"{name}.from_pretrained" for name in ("PeftModel", "LoraConfig", "GenerationConfig")}
"""They take no trust_remote_code; model/loading.py checks the directory of an adapter."""


def calls(tree: ast.AST):
    """Names of each called function, with the call: `f`, or `.c` and `b.c` of `a.b.c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            *before, last = ast.unparse(node.func).split(".")
            yield {f".{last}", f"{before[-1]}.{last}"} if before else {last}, node


def test_every_call_that_could_run_code_forbids_it(project_root):
    found = []
    for path in project_files(project_root):
        if path.suffix != ".py" or path.relative_to(project_root).parts[0] == "tests":
            continue
        for names, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(project_root)}:{call.lineno}: {ast.unparse(call)}"
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
            for name in names & SAFE.keys() - ({".from_pretrained"} if names & NO_CODE_POSSIBLE else set()):
                keyword, value = SAFE[name]
                found.append(name)
                assert given.get(keyword, "absent") is value, f"{where} lacks {keyword}={value}"
            unsafe = names & NEVER
            if unsafe == {"input"}:
                assert path.name == "chat.py", f"{where} asks on the terminal"
            elif unsafe == {"pickle.loads"}:
                assert path.name == "worker_pool.py", f"{where} reads more than answers of processes of its own"
            else:
                assert not unsafe, where
            assert given.get("trust_remote_code", False) is False, where
            assert given.get("allow_pickle", False) is False, where
    assert found.count(".from_pretrained") > 4
    assert "torch.load" in found
