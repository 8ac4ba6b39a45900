"""The functions for Python: the script's answers, checked input, nothing printed or changed."""

import json
import shutil
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from colossal_llama.dataset.conversation import Message
from colossal_llama.inference.api import Sampling, open_model, select_device
from colossal_llama.utils.checksums import write_checksums
from colossal_llama.utils.errors import UserError
from tests.inference.test_cli import CHATML
from tests.support.forked import run_forked

SAMPLED = Sampling(seed=5, temperature=1.5, max_new_tokens=24)
OPTIONS = ("--device", "cpu", "--seed", 5, "--temperature", 1.5, "--max_new_tokens", 24)
SCRIPT = "inference_example.py"


@pytest.fixture(scope="module")
def model(random_model_directory):
    return open_model(random_model_directory, device="cpu")


@pytest.mark.parametrize("style", ["pretrained", "sft"])
def test_answers_are_the_scripts(project_root, random_model_directory, style):
    model = open_model(random_model_directory, device="cpu", prompt_style=style)
    done = run_forked(
        project_root, SCRIPT, "--model_path", random_model_directory, *OPTIONS, "--input_txt", "床前", "--prompt_style",
        style,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert model.complete("床前", SAMPLED) + "\n" == done.stdout
    assert "".join(model.stream("床前", SAMPLED)) + "\n" == done.stdout


def test_a_chat_is_the_scripts_with_the_same_random_source(project_root, random_model_directory, tmp_path):
    """Also when it gets too long, and with a template and a system message."""
    (tmp_path / "chat.jinja").write_text(CHATML)
    questions = ["你好", *["some words that fill the positions"] * 10]
    form = ("--system", "Be brief.", "--chat_template", tmp_path / "chat.jinja", "--interactive")
    done = run_forked(
        project_root, SCRIPT, "--model_path", random_model_directory, *OPTIONS, *form, stdin="\n".join(questions)
    )
    assert done.returncode == 0, done.stderr
    model = open_model(random_model_directory, device="cpu", system="Be brief.", chat_template=tmp_path / "chat.jinja")
    history, shown, dropped, source = [], "", 0, model.random_source(5)
    for question in questions:
        answer = model.chat(question, json.loads(json.dumps(history)), SAMPLED, source)
        shown += "Assistant: " + "".join(answer) + "\n"
        history = answer.history
        dropped += answer.dropped_messages
    assert shown == done.stdout
    assert dropped > 0
    assert done.stderr.count("are dropped") > 0
    assert history[0] == {"role": "system", "content": "Be brief."}


def test_many_prompts_are_the_scripts_file(project_root, random_model_directory, tmp_path):
    records = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "问题", "b c")]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    files = ("--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.jsonl", "--prompt_style", "sft")
    done = run_forked(project_root, SCRIPT, "--model_path", random_model_directory, *OPTIONS, *files)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line)["generated"] for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    model = open_model(random_model_directory, device="cpu", prompt_style="sft")
    assert model.complete_many(["a", "问题", "b c"], SAMPLED) == written
    assert model.complete_many([record["messages"] for record in records], SAMPLED) == written


def test_messages_have_any_form_and_are_given_back_in_one(model):
    forms = (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}],
        [Message("human", "a"), Message("assistant", "")],
    )
    answers = [model.chat("b", history, Sampling(do_sample=False, max_new_tokens=4)) for history in forms]
    assert len({answer.finish().text for answer in answers}) == 1
    assert answers[0].history == answers[1].history == answers[2].history
    assert answers[0].history[:2] == forms[0]


def test_a_seed_repeats_and_no_seed_does_not(model):
    assert model.complete("x", SAMPLED) == model.complete("x", SAMPLED)
    free = Sampling(temperature=5.0, top_k=0, top_p=1.0, max_new_tokens=24)
    torch.manual_seed(0)
    first = model.complete("x", free)
    torch.manual_seed(0)
    assert model.complete("x", free) != first


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "the last message must be a human's"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "nothing to answer"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
            "first",
        ),
        ([{"role": "wizard", "content": "a"}], "the known roles are"),
        ([{"role": "user"}], "missing"),
        ([{"role": "user", "content": None}], "null"),
        ([{"role": "user", "content": {"text": "a"}}], "a string is needed"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}], "only text is"),
        ([{"role": "user", "content": "a", "picture": "b"}], "picture"),
        (["a"], "an object is needed"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
        ([{"role": "user", "content": "word " * 400}], "400 positions"),
    ],
)
def test_messages_that_are_none_are_refused_at_once(model, messages, problem):
    with pytest.raises(UserError, match=problem):
        model.stream(messages)


def test_texts_that_are_none_are_refused_at_once(model, random_model_directory):
    with pytest.raises(UserError, match="surrogate"):
        model.stream("a\udcff")
    with pytest.raises(UserError) as refused:
        model.answers(["a", "word " * 400, "b", "word " * 500])
    assert [problem.partition(" has")[0] for problem in refused.value.problems] == ["prompt 2", "prompt 4"]
    base = open_model(random_model_directory, device="cpu", prompt_style="pretrained")
    with pytest.raises(UserError, match="does not take turns"):
        base.chat("a")


def test_all_wrong_arguments_are_named_together(random_model_directory):
    with pytest.raises(UserError) as refused:
        Sampling(temperature=0, top_k=-1, top_p=2, do_sample="no", max_new_tokens=1.5, seed=-1)
    assert [problem.partition("=")[0] for problem in refused.value.problems] == [
        *("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed"),
    ]
    with pytest.raises(UserError) as refused:
        open_model(random_model_directory, dtype="int3", llama_version=4, chat_template="absent.jinja")
    assert len(refused.value.problems) == 3
    for options in (
        {"device": "abacus"},
        {"llama_version": 3, "device": "cpu"},
        {"prompt_style": "pretrained", "system": ""},
    ):
        with pytest.raises(UserError):
            open_model(random_model_directory, **options)
    with pytest.raises(UserError, match="is not a directory"):
        open_model("./nowhere")


def test_edited_files_are_a_warning(random_model_directory, tmp_path):
    model = shutil.copytree(random_model_directory, tmp_path / "model")
    write_checksums(model, {})
    (model / "generation_config.json").write_text('{"top_p": 0.9, "do_sample": false}')
    with pytest.warns(UserWarning, match="was edited or is damaged: generation_config.json"):
        open_model(model, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_model(random_model_directory, device="cpu")


def test_threads_have_answers_of_their_own(model):
    texts = [f"text {number}" for number in range(4)]
    greedy = Sampling(do_sample=False, max_new_tokens=16)
    expected = [model.complete(text, greedy) for text in texts]
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: model.complete(texts[number], greedy)}))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == expected


def test_nothing_is_printed(random_model_directory, tmp_path):
    """By the functions themselves, in a process without anything else."""
    code = (
        "import sys; from colossal_llama.inference.api import Sampling, open_model\n"
        "model = open_model(sys.argv[1], device='cpu')\n"
        "model.complete('x', Sampling(max_new_tokens=4)); model.chat('x', sampling=Sampling(max_new_tokens=4)).finish()"
    )
    done = subprocess.run([sys.executable, "-c", code, random_model_directory], capture_output=True, check=True)
    assert done.stdout == b""


def test_a_device_without_memory_is_refused():
    import colossalai.booster  # noqa: F401  # with which a number of the device meta can be read

    with pytest.raises(UserError, match="--device meta cannot be used here"):
        select_device("meta")
