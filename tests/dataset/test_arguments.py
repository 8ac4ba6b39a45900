"""Options of the prepare scripts: each is used, and what cannot work is said at once, all of it."""

import re

import pytest

from colossal_llama.dataset.prepare.arguments import ARGUMENTS, Verification
from colossal_llama.dataset.prepare.cli import parse_arguments
from colossal_llama.utils.arguments import declared_options


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_every_option_is_read_somewhere(project_root, kind):
    """An option that is parsed and used nowhere would be a promise that nobody keeps."""
    package = project_root / "colossal_llama"
    sources = [*(package / "dataset" / "prepare").glob("*.py"), package / "readers" / "fields.py"]
    code = "\n".join(path.read_text() for path in sources)
    for name in declared_options(ARGUMENTS[kind]):
        assert re.search(rf"\b(arguments|paths|fields|rows|run|shards|inspection|self)\.{name}\b", code), name


def test_all_problems_of_a_command_are_named_together(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments("pretrain", ["--max_length=4", "--num_shards=2", "--splicing=none", "--unknown=1"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    for problem in ("4 is less than 8", "invalid choice: 'none'", "--unknown=1 is no argument", "needs --shard_index"):
        assert problem in message
    for name in ("data_input_dirs", "tokenizer_dir", "data_output_dirs"):
        assert f"--{name} is missing: name the directory" in message.replace("directories", "directory")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--text_field=a", "--target_field=b"], "--text_field names the whole document and --target_field a part"),
        (["--text_field=a", "--source_field=b"], "--text_field names the whole document and --source_field a part"),
        (["--text_field=a", "--category_field=a"], "--text_field and --category_field are both 'a'"),
        (["--source_field=a", "--target_field=a"], "--source_field and --target_field are both 'a'"),
        (["--category_field=a", "--category_from=file"], "--category_from file leaves --category_field unread"),
        (["--text_field=category"], "--text_field category is the category's column, too"),
        (["--category_from=Directory"], "'Directory' is 'directory' in small letters"),
        (["--category_from=a\nb"], "cannot be printed"),
        (["--text_field= "], "the name is empty"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(words, problem, capsys):
    with pytest.raises(SystemExit):
        parse_arguments("pretrain", words)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--roles", "bot"], "'bot' is not NAME=human|assistant|system|drop"),
        (["--roles", "=drop"], "'=drop' is not NAME="),
        (["--roles", "bot=gpt"], "did you mean bot=assistant?"),
        (["--roles", "bot=Drop"], "did you mean bot=drop?"),
        (["--roles", "bot=assistant,bot=drop"], "'bot' is assistant and drop"),
        (["--roles", "bot=assistant", "--roles", "bot=drop"], "'bot' is assistant and drop"),
        (["--system", " "], "nothing but blanks"),
        (["--system", "a", "--system_file", "SELF"], "--system and --system_file both give"),
        (["--system_file", "absent"], "absent does not exist"),
    ],
)
def test_roles_and_system_prompts_that_cannot_be_are_refused(words, problem, tmp_path, capsys):
    (tmp_path / "system.txt").write_text("b")
    with pytest.raises(SystemExit):
        parse_arguments("sft", [str(tmp_path / "system.txt") if word == "SELF" else word for word in words])
    assert problem in capsys.readouterr().err


def test_roles_are_gathered_from_all_words(tmp_path):
    words = ["--roles", "bot=assistant", "a=b=drop,guest=human", "--system=", "--roles", "tool=drop"]
    for name in ("data_input_dirs", "tokenizer_dir", "data_output_dirs"):
        words += [f"--{name}", str(tmp_path)]
    rows = parse_arguments("sft", words).rows
    assert rows.roles == (("bot", "assistant"), ("a=b", "drop"), ("guest", "human"), ("tool", "drop"))
    assert rows.system_prompt == ""


def test_verify_goes_with_no_other_argument(tmp_path, capsys):
    assert parse_arguments("sft", ["--verify", str(tmp_path)]) == Verification(tmp_path)
    with pytest.raises(SystemExit):
        parse_arguments("sft", ["--verify", str(tmp_path), "--limit", "3"])
    assert "not with --limit" in capsys.readouterr().err
