"""A few damages of tokenizers and of files of pieces; the long form is run by hand."""

from tests.campaigns.damaged_tokenizer import run_trials


def test_damages_of_tokenizers_and_pieces_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # restored after run_trials sets it
    outcomes = list(run_trials(8, 5, tmp_path))
    assert len(outcomes) == 8
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
