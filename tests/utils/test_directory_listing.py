"""Input files are found through links, once each, and what cannot be read is named."""

from colossal_llama.utils.directory_listing import list_files


def test_files_are_sorted_found_through_links_and_hidden_ones_skipped(tmp_path):
    directory, other = tmp_path / "in", tmp_path / "other"
    for path in ("in/b.jsonl", "in/a/c.jsonl", "in/a/d.txt", "in/.hidden.jsonl", "in/.git/e.jsonl", "other/f.jsonl"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (directory / "link").symlink_to(other)
    (other / "cycle").symlink_to(directory)
    files, problems = list_files(directory, (".jsonl",))
    assert [str(path.relative_to(directory)) for path in files] == ["a/c.jsonl", "b.jsonl", "link/f.jsonl"]
    assert problems == []


def test_a_broken_link_is_a_problem(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "absent")
    files, problems = list_files(tmp_path, (".jsonl",))
    assert files == []
    assert len(problems) == 1
    assert str(tmp_path / "absent") in problems[0]
