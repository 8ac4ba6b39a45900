"""`evaluate.py --questions` as users run it: the answers are inference's, the table shows them."""

import json
import re
import shutil

import pytest

from colossal_llama.dataset.conversation import ConversationTemplate
from colossal_llama.dataset.trained_format import set_trained_template, trained_format
from colossal_llama.evaluation.markdown_table import cell_of, markdown_table
from colossal_llama.inference.api import Sampling, open_model
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.support.forked import run_forked

SCRIPT = "evaluate.py"
QUESTIONS = [
    {"source": "床前明月光", "id": 7},
    {"messages": [{"role": "user", "content": "a | b\n`c` <d>"}, {"role": "assistant", "content": "left out"}]},
    {"instruction": "Say it", "input": "twice", "output": "x"},
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in QUESTIONS), "utf-8")
    return path


def ask(project_root, model, questions, out, *more):
    words = ("--model_path", model, "--output_dir", out, "--device", "cpu", "--max_length", 400, "--max_new_tokens", 12)
    return run_forked(project_root, SCRIPT, *words, "--questions", questions, *more)


@pytest.mark.parametrize("style", ["pretrained", "sft"])
def test_answers_are_those_of_inference(project_root, random_model_directory, questions, tmp_path, style):
    done = ask(project_root, random_model_directory, questions, tmp_path / "out", "--prompt_style", style)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    texts = ["床前明月光", "a | b\n`c` <d>", "Say it\n\ntwice"]
    assert [answer["question"] for answer in answers] == texts
    assert [answer["record"] for answer in answers] == QUESTIONS
    if style == "sft":
        records = [{"messages": [{"role": "user", "content": texts[0]}]}, *QUESTIONS[1:]]
    else:
        records = [{"source": text} for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    done = run_forked(
        project_root, "inference_example.py", "--model_path", random_model_directory, "--device", "cpu",
        "--do_sample", False, "--max_new_tokens", 12, "--prompt_style", style, "--input_file", tmp_path / "in.jsonl",
        "--output_file", tmp_path / "generated.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [json.loads(line) for line in (tmp_path / "generated.jsonl").read_text("utf-8").splitlines()]
    for answer, inferred in zip(answers, expected, strict=True):
        assert answer["answers"]["random"]["generated"] == inferred["generated"]
        assert answer["answers"]["random"]["generated_tokens"] == inferred["generated_tokens"]


def test_several_models_are_one_table_and_answers_are_kept(project_root, random_model_directory, questions, tmp_path):
    out = tmp_path / "out"
    other = tmp_path / "other"
    other.symlink_to(random_model_directory)
    done = ask(project_root, random_model_directory, questions, out, "--compare", other)
    assert done.returncode == 0, done.stderr
    table = [line for line in (out / "answers.md").read_text("utf-8").splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(QUESTIONS)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {6}
    assert "a \\| b<br>\\`c\\` &lt;d&gt;" in table[3]
    line, *rest = (out / "other" / "answers.jsonl").read_text("utf-8").splitlines()
    changed = json.dumps({**json.loads(line), "generated": "kept"})
    (out / "other" / "answers.jsonl").write_text("\n".join([changed, *rest]), "utf-8")
    done = ask(project_root, random_model_directory, questions, out, "--compare", other)
    assert done.returncode == 0, done.stderr
    first = json.loads((out / "answers.jsonl").read_text("utf-8").splitlines()[0])
    assert first["answers"]["other"]["generated"] == "kept"
    done = ask(project_root, random_model_directory, questions, out, "--prompt_style", "sft")
    assert done.returncode == 2
    assert "prompt_style was None, now sft" in done.stderr


def test_a_format_that_is_refused_leaves_the_output_directory_to_the_next_one(
    project_root, random_model_directory, questions, tmp_path
):
    form = ("--prompt_style", "sft", "--chat_template")
    (tmp_path / "unmarked.jinja").write_text("{{ messages[0].content }}", "utf-8")
    done = ask(project_root, random_model_directory, questions, tmp_path / "out", *form, tmp_path / "unmarked.jinja")
    assert (done.returncode, "{% generation %}" in done.stderr) == (2, True), done.stderr
    done = ask(project_root, random_model_directory, questions, tmp_path / "out", *form[:2])
    assert done.returncode == 0, done.stderr


def test_each_model_is_asked_in_the_format_that_it_records(project_root, random_model_directory, questions, tmp_path):
    """Without options: the fine-tuned one by its template, the base model as such."""
    tuned, out = tmp_path / "tuned", tmp_path / "out"
    shutil.copytree(random_model_directory, tuned)
    tokenizer = load_tokenizer(tuned)
    description = ConversationTemplate.for_llama(tokenizer, 2, system="Be brief.").describe()
    set_trained_template(tokenizer, trained_format(description, tokenizer).template)
    tokenizer.save_pretrained(tuned)
    done = ask(project_root, tuned, questions, out, "--compare", random_model_directory)
    assert done.returncode == 0, done.stderr
    facts = (out / "answers.md").read_text("utf-8")
    assert f"tuned ({tuned}): --prompt_style sft, the built-in format with </s> and " in facts
    assert "Be brief." in facts
    assert f"random ({random_model_directory}): --prompt_style pretrained, as a base model" in facts
    answers = [json.loads(line)["answers"] for line in (out / "answers.jsonl").read_text("utf-8").splitlines()]
    sampling = Sampling(do_sample=False, max_new_tokens=12)
    as_chat, as_base = open_model(tuned, device="cpu", prompt_style="sft"), open_model(tuned, device="cpu")
    texts = ["床前明月光", "a | b\n`c` <d>", "Say it\n\ntwice"]
    assert [answer["tuned"]["generated"] for answer in answers] == as_chat.complete_many(texts, sampling)
    assert [answer["random"]["generated"] for answer in answers] == as_base.complete_many(texts, sampling)


def test_lines_without_a_question_and_long_ones_are_named(project_root, random_model_directory, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"source": "fine"}\n{"x": 1}\nno json\n', "utf-8")
    done = ask(project_root, random_model_directory, tmp_path / "q.jsonl", tmp_path / "out")
    assert done.returncode == 2
    assert "q.jsonl, line 2" in done.stderr
    assert "q.jsonl, line 3" in done.stderr
    (tmp_path / "q.jsonl").write_text(json.dumps({"source": "fine"}) + "\n" + json.dumps({"source": "x y " * 500}))
    done = ask(project_root, random_model_directory, tmp_path / "q.jsonl", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "(no answer: the prompt has" in (tmp_path / "out" / "answers.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("ends in \\", "ends in \\\\"),
        ("one\r\ntwo\u2028three", "one<br>two<br>three"),
        ("  indented", "&nbsp;&nbsp;indented"),
        ("<br> & *x* `y` [z] $w$", r"&lt;br&gt; &amp; \*x\* \`y\` \[z\] \$w\$"),
        ("snake_case and _this_", r"snake_case and \_this\_"),
        ("nul\0 and \x1b[1m", "nul\ufffd and \ufffd\\[1m"),
        ("👩‍👩‍👧 می‌خواهم", "👩‍👩‍👧 می‌خواهم"),  # joiners stay
    ],
)
def test_a_cell_shows_any_text_as_it_is(text, cell):
    assert cell_of(text) == cell
    assert markdown_table(["a"], [[text]]).count("\n") == 2
