"""Quality by loss: the losses are the model's, the band is kept, a killed run ends as any other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from colossal_llama.cleaning import quality_loss
from colossal_llama.cleaning.arguments import CleanArguments
from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.pipeline import clean
from colossal_llama.cleaning.quality_loss import Band, QualityBands, QualityModel, measure_chunks
from colossal_llama.cleaning.rule_settings import Rule, read_rules
from colossal_llama.cleaning.verification import verify
from colossal_llama.evaluation.bits_per_byte import DocumentEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.cleanings import chinese, cleaning, content, document, dropped, english, kept, write_records

TEXTS = [english(1, 3), chinese(2, 3), "Ein Tag, 旧い。", english(3, 60)]


def _rule(**values) -> Rule:
    return Rule(True, {**read_rules()["quality_loss"].values, **values})


@pytest.fixture(scope="module")
def model(random_model_directory) -> QualityModel:
    return QualityModel.find(random_model_directory)


def _plain_loss(model, tokenizer, text: str) -> float:
    """Nats per byte of a text that one window holds, in as few words as possible."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item() / len(text.encode())


def test_losses_are_nats_per_byte_of_the_model(model, random_model, random_model_directory):
    tokenizer = load_tokenizer(random_model_directory)
    measured = model.losses(TEXTS)
    assert measured[:3] == pytest.approx([_plain_loss(random_model, tokenizer, text) for text in TEXTS[:3]], rel=1e-4)
    assert measured[3] > 0
    assert model.window_tokens == 400  # the model's positions; the last text is longer


def test_text_that_the_tokenizer_loses_is_not_judged(model, monkeypatch):
    encode = DocumentEncoder.encode

    def losing(encoder, texts):
        first, *others = encode(encoder, texts)
        return [replace(first, is_lossless=False), *others]

    monkeypatch.setattr(DocumentEncoder, "encode", losing)
    first, *others = model.losses(TEXTS)
    assert math.isnan(first)
    assert all(map(math.isfinite, others))


def test_band_is_the_narrower_of_quantiles_and_values():
    losses = np.arange(1, 11, dtype=np.float64)
    band = Band.of(losses, _rule(min_quantile=0.1, max_quantile=0.9))
    assert (band.low, band.high) == pytest.approx((1.9, 9.1))
    assert band.verdict(1.0) == Verdict("quality_loss", 1.0, "min_quantile 0.1: 1.9")
    assert band.verdict(10.0) == Verdict("quality_loss", 10.0, "max_quantile 0.9: 9.1")
    assert band.verdict(band.high) is band.verdict(5.0) is band.verdict(math.nan) is None
    by_value = Band.of(losses, _rule(min_nats_per_byte=3.0, max_nats_per_byte=4.0, max_quantile=0.9))
    assert (by_value.low, by_value.high) == (3, 4)
    assert by_value.verdict(5.0) == Verdict("quality_loss", 5.0, "max_nats_per_byte 4")
    assert Band.of(np.empty(0), _rule()).verdict(1.0) is None


class _Lengths:
    """In place of a model: the loss of a text is its length."""

    found = None

    def __init__(self):
        self.measured: list[str] = []

    def losses(self, texts):
        self.measured += texts
        return [math.nan if text == "lossy" else float(len(text)) for text in texts]


def test_bands_are_of_each_category_or_of_all(tmp_path):
    chunks = [
        [Document(["", "x" * length], category, "", "f", 1) for length in range(1, 6)] for category in ("long", "b")
    ]
    chunks[0] += [Document(["", "x" * 100], "b", "", "f", 1), Document(["", "lossy"], "long", "", "f", 1)]
    for by_category, of_long in ((True, [False] * 3 + [True, True]), (False, [False] * 4 + [True])):
        rule = _rule(by_category=by_category, max_quantile=0.7, max_nats_per_byte=1000.0)
        work = tmp_path / str(by_category)
        measure_chunks(work, [0, 1], lambda chunk: chunks[chunk], _Lengths(), rule)
        bands = QualityBands.of_chunks(work, [0, 1], rule)
        found = [[verdict is not None for verdict in bands.of_chunk(chunk)] for chunk in (0, 1)]
        assert found == [[*of_long, True, False], [False] * 4 + [True]]
        assert bands.facts["long"]["not_judged"] == 1


def test_killed_measurement_goes_on_behind_its_last_group(tmp_path, monkeypatch):
    monkeypatch.setattr(quality_loss, "_GROUP_DOCUMENTS", 4)
    monkeypatch.setattr(quality_loss, "_GROUP_BYTES", 32)
    documents = [Document(["", "x" * length], "a", "", "f", 1) for length in range(1, 15)]

    class Killed(_Lengths):
        def losses(self, texts):
            if len(self.measured) == 8:
                raise KeyboardInterrupt
            return super().losses(texts)

    with pytest.raises(KeyboardInterrupt):
        measure_chunks(tmp_path, [0], lambda chunk: documents, Killed(), _rule())
    with quality_loss.quality_base(tmp_path, 0).with_suffix(".partial").open("ab") as file:
        file.write(b"half")  # of a loss
    rest = _Lengths()
    measure_chunks(tmp_path, [0], lambda chunk: documents, rest, _rule())
    assert [len(text) for text in rest.measured] == list(range(9, 15))
    losses = np.fromfile(quality_loss.quality_base(tmp_path, 0).with_suffix(".losses"))
    assert losses.tolist() == list(range(1, 15))
    again = _Lengths()
    measure_chunks(tmp_path, [0], lambda chunk: documents, again, _rule())
    assert again.measured == []


def test_infinite_loss_is_refused(tmp_path):
    class Damaged(QualityModel):
        losses = staticmethod(lambda texts: [math.inf] * len(texts))

    class Found:
        directory = "DIR"

    with pytest.raises(UserError, match="--quality_model DIR: the loss of a document of f is not a finite number"):
        measure_chunks(tmp_path, [0], lambda chunk: [Document(["", "x"], "a", "", "f", 1)], Damaged(Found()), _rule())


@pytest.fixture
def raw(tmp_path):
    records = [document(english(seed, 6), "web") for seed in range(20)] + [document(chinese(1)), document(chinese(2))]
    return write_records(tmp_path / "raw" / "a.jsonl", [*records, records[4]]).parent


def _arguments(raw, output, model_directory, *options) -> CleanArguments:
    beginning = "quality_loss.beginning_characters=60"
    return cleaning([raw], output, "--quality_model", str(model_directory), "--set", beginning, *options)


def test_cleaning_drops_what_lies_outside_the_band(raw, tmp_path, random_model_directory, model):
    output = tmp_path / "out"
    report = clean(_arguments(raw, output, random_model_directory, "quality_loss.max_quantile=0.7"))
    lines = dropped(output, "quality_loss")
    assert report["reasons"]["quality_loss"]["documents"] == len(lines) == 7
    assert "all as in the report" in verify(output)
    web = [record["target"] for record in kept(output) if record["category"] == "web"]
    worst = [record["target"] for record in lines if record["category"] == "web"]
    assert (len(web), len(worst)) == (14, 6)
    assert max(model.losses([text[:60] for text in web])) < min(model.losses([text[:60] for text in worst]))
    facts = report["run"]["quality_loss"]["categories"]
    assert {name: entry["documents"] for name, entry in facts.items()} == {"made": 2, "web": 20}
    assert not (output / "work").exists()


def test_killed_cleaning_ends_with_the_same_bytes(raw, tmp_path, random_model_directory, monkeypatch):
    clean(_arguments(raw, tmp_path / "whole", random_model_directory))
    measured = quality_loss._measure_chunk

    def killed(*arguments):
        measured(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(quality_loss, "_measure_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(_arguments(raw, tmp_path / "killed", random_model_directory))
    monkeypatch.setattr(quality_loss, "_measure_chunk", measured)
    clean(_arguments(raw, tmp_path / "killed", random_model_directory))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    with pytest.raises(UserError, match="with other arguments"):
        clean(cleaning([raw], tmp_path / "killed"))


def test_quality_model_is_refused_where_it_has_no_effect_or_is_none(raw, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    given = ("--quality_model", str(tmp_path / "nothing"))
    for options, problem in (
        (("--off", "quality_loss"), "--quality_model has no effect: the rule quality_loss is off"),
        ((), f"--quality_model: {tmp_path / 'nothing'}"),
    ):
        with pytest.raises(SystemExit) as ended:
            cleaning([raw], tmp_path / "out", *given, *options)
        assert ended.value.code == 2
        assert problem in capsys.readouterr().err
