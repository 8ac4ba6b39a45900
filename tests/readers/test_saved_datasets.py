"""Directories saved as a whole: data sets, their splits and caches, our own results."""

import json
import shutil

import pytest

from colossal_llama.readers.directory_listing import unread_message
from colossal_llama.readers.listing import find_input_files
from colossal_llama.utils.errors import UserError
from tests.support.read_back import read_back

ROWS = [{"text": f"Text {number}", "category": "c"} for number in range(30)]


@pytest.fixture
def saved(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "corpus" / "saved"), num_shards=3)
    return tmp_path / "corpus" / "saved"


def test_a_saved_data_set_is_read_in_order_given_itself_or_from_above(saved):
    (saved / "cache-0123.arrow").write_bytes(b"of an earlier map()")
    for path in (saved, saved.parent):
        assert read_back(path) == (ROWS, [])
        _, unread = find_input_files([path])
        assert (unread["count"], unread["first"]) == (1, [f"{'corpus/' * (path != saved)}saved/cache-0123.arrow"])


def test_a_missing_data_file_is_named(saved):
    (saved / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow, which state\.json names, is missing"):
        find_input_files([saved.parent])


def test_a_selection_that_old_versions_saved_is_refused(saved):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "_indices_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match=r"call flatten_indices\(\) and save it again"):
        find_input_files([saved])


def test_of_several_splits_those_to_be_read_must_be_given(saved, tmp_path):
    both = tmp_path / "both"
    for split in ("train", "test"):
        shutil.copytree(saved, both / split)
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(UserError, match=f"holds the splits train, test .*of {both}/train,{both}/test"):
        find_input_files([both])
    assert read_back(both / "train") == (ROWS, [])
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    shutil.rmtree(both / "test")
    assert read_back(both) == (ROWS, [])
    assert unread_message(find_input_files([both])[1]) == ""


def test_prepared_data_is_refused_as_raw_data(saved, tmp_path):
    info = json.loads((saved / "dataset_info.json").read_text())
    (saved / "dataset_info.json").write_text(json.dumps({**info, "features": {"input_ids": {}}}))
    result = tmp_path / "result"
    (result / "jsonl").mkdir(parents=True)
    (result / "jsonl" / "part-00000.jsonl").write_text("{}\n")
    (result / "manifest.json").write_text(json.dumps({"identity": {}, "parts": []}))
    for path in (saved, saved.parent, result, result / "jsonl", tmp_path):
        with pytest.raises(UserError, match=r"is prepared already, and no raw data: give it to train\.py"):
            find_input_files([path])


def test_what_describes_data_of_a_hub_is_unread_where_it_lies_next_to_data(tmp_path):
    hub = tmp_path / "hub"
    for name in ("README.md", "LICENSE.txt", "dataset_infos.json", "data/train.jsonl", "notes.md", "more/README.md"):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / name).write_text("{}\n")
    files, unread = find_input_files([hub])
    assert [file.name for file in files] == ["hub/data/train.jsonl", "hub/more/README.md", "hub/notes.md"]
    assert unread["first"] == ["hub/LICENSE.txt", "hub/README.md", "hub/dataset_infos.json"]


def test_the_cache_of_a_hub_is_read_through_its_links(tmp_path):
    repository = tmp_path / "datasets--org--name"
    snapshot = repository / "snapshots" / "0123" / "data"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "blobs" / "4f3a").write_text('{"text": "A"}\n')
    (snapshot / "train.jsonl").symlink_to("../../../blobs/4f3a")
    (repository / "refs" / "main").write_text("0123")
    assert read_back(repository) == ([{"text": "A"}], [])
    assert find_input_files([repository])[1]["first"] == ["datasets--org--name/refs/main"]
