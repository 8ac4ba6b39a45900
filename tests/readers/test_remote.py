"""Remote files: the rows and names of local ones; errors retried or named; no secret is said."""

import argparse
import gzip
import http.server
import json
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from colossal_llama.dataset.prepare import input_files
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.readers import remote
from colossal_llama.readers.input_paths import input_paths
from colossal_llama.readers.listing import find_input_files, refuse_files_that_changed
from colossal_llama.readers.remote import RemotePath, list_remote, url_problem, without_secrets
from colossal_llama.readers.rows import FileRange, read_rows
from colossal_llama.utils.errors import UserError
from tests.support.preparations import content, preparation


def documents(first: int, count: int) -> list[dict]:
    targets = [f"document {number} " + "words " * (number % 23) for number in range(first, first + count)]
    return [{"source": "", "target": target, "category": f"c{len(target) % 2}"} for target in targets]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A directory with files of several formats, one of them compressed."""
    directory = tmp_path_factory.mktemp("remote") / "corpus"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "a.jsonl").write_bytes(lines(documents(0, 900)))
    (directory / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(lines(documents(900, 50))))
    (directory / "deep" / "er" / "c.json").write_text(json.dumps(documents(950, 20), indent=1))
    (directory / "deep" / "note.txt").write_text("A text is a document.")
    (directory / "README.md").write_text("This describes the data.")
    (directory / "picture.png").write_bytes(b"png")
    (directory / ".hidden.jsonl").write_text("no")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents(970, 40)), directory / "d.parquet")
    return directory


@pytest.fixture
def memory(corpus):
    """The corpus at memory://bucket/corpus."""
    system = fsspec.filesystem("memory")
    for path in corpus.rglob("*"):
        if path.is_file():
            system.pipe(f"/bucket/corpus/{path.relative_to(corpus)}", path.read_bytes())
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def opened(made_data):
    return OpenTokenizer(made_data / "tokenizers" / "llama2")


def prepared(paths, output, opened, made_data, **changes):
    basic = {"max_length": 128, "num_spliced_dataset_bins": 3, **changes}
    return prepare(preparation("pretrain", paths, made_data / "tokenizers" / "llama2", output, **basic), opened)


@pytest.mark.parametrize("chunk_bytes", [4 << 20, 5_000], ids=["whole", "ranges"])
def test_memory_and_file_urls_prepare_what_paths_do(
    tmp_path, corpus, memory, opened, made_data, monkeypatch, capsys, chunk_bytes
):
    monkeypatch.setattr(input_files, "CHUNK_BYTES", chunk_bytes)
    prepared((corpus,), tmp_path / "local", opened, made_data)
    prepared(tuple(input_paths(f"file://{corpus}")), tmp_path / "file", opened, made_data)
    assert content(tmp_path / "file") == content(tmp_path / "local")
    prepared(tuple(input_paths("memory://bucket/corpus")), tmp_path / "memory", opened, made_data, num_workers=2)
    assert "memory:// is of this process alone" in capsys.readouterr().out
    assert content(tmp_path / "memory") == content(tmp_path / "local")
    assert verify(tmp_path / "memory")
    names = [entry["name"] for entry in json.loads((tmp_path / "memory" / "manifest.json").read_text())["input_files"]]
    assert names == ["corpus/a.jsonl", "corpus/d.parquet", "corpus/deep/b.jsonl.gz", "corpus/deep/er/c.json",
                     "corpus/deep/note.txt"]  # fmt: skip


def test_single_files_and_patterns_are_listed_and_equal_names_are_told_apart(corpus, memory):
    found = find_input_files(["memory://bucket/corpus/a.jsonl", "memory://bucket/corpus/deep/*.gz"])[0]
    assert [file.name for file in found] == ["corpus/a.jsonl", "deep/b.jsonl.gz"]
    memory.pipe("/other/corpus/a.jsonl", b"{}\n")
    found = find_input_files([corpus, "memory://bucket/corpus", "memory://other/corpus"])[0]
    names = [file.name for file in found if file.path.name == "a.jsonl"]
    assert len(set(names)) == 3
    assert {"bucket/corpus/a.jsonl", "other/corpus/a.jsonl"} < set(names)
    with pytest.raises(UserError, match=r"memory://bucket/corpus/a\.jsonl is reached twice"):
        find_input_files(["memory://bucket/corpus", "memory://bucket"])


def test_what_is_not_read_is_named_as_of_a_local_directory(corpus, memory):
    assert find_input_files(["memory://bucket/corpus"])[1] == find_input_files([corpus])[1]
    memory.pipe("/pictures/a.png", b"png")
    with pytest.raises(UserError, match="memory://pictures holds no file that ends in"):
        find_input_files(["memory://pictures"])
    with pytest.raises(UserError, match="memory://nothing does not exist"):
        find_input_files(["memory://nothing"])


def test_changed_remote_files_are_named_and_make_a_run_refuse(tmp_path, memory, opened, made_data):
    files, _ = find_input_files(["memory://bucket/corpus"])
    refuse_files_that_changed(files)
    prepared(("memory://bucket/corpus",), tmp_path / "out", opened, made_data)
    other = memory.cat("/bucket/corpus/a.jsonl").replace(b"document 7 ", b"document X ")
    memory.pipe("/bucket/corpus/a.jsonl", other)
    with pytest.raises(UserError, match=r"memory://bucket/corpus/a\.jsonl was written or replaced"):
        refuse_files_that_changed(files)
    with pytest.raises(UserError, match=r"input file corpus/a\.jsonl: its content has changed"):
        prepared(("memory://bucket/corpus",), tmp_path / "out", opened, made_data)
    memory.rm("/bucket/corpus/a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl can no longer be read: it has gone"):
        refuse_files_that_changed(files)


class _Unsteady(MemoryFile):
    """A file of a network that breaks."""

    failures = 0

    def read(self, size=-1):
        if type(self).failures and self.tell():
            type(self).failures -= 1
            raise ConnectionResetError(f"{self.path}: reset by peer, at https://me:word@host/?token=1")
        return super().read(min(size, 700))


class _UnsteadySystem(MemoryFileSystem):
    protocol = "unsteady"
    store: dict = {}  # noqa: RUF012 - of all instances, as the base class has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("unsteady://").strip("/")

    def _open(self, path, mode="rb", **settings):
        return _Unsteady(self, path, self.store[path].getvalue())


@pytest.fixture
def unsteady(monkeypatch):
    fsspec.register_implementation("unsteady", _UnsteadySystem, clobber=True)
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    for name, data in (("a.jsonl", lines(documents(0, 200))), ("b.jsonl.gz", gzip.compress(lines(documents(0, 3000))))):
        _UnsteadySystem.store[f"/data/{name}"] = MemoryFile(None, f"/data/{name}", data)
    yield _UnsteadySystem()
    _UnsteadySystem.store.clear()
    _Unsteady.failures = 0


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz"])
def test_a_connection_that_breaks_is_opened_again_and_nothing_is_lost(unsteady, name, capsys):
    (file,), _ = find_input_files([f"unsteady://data/{name}"])
    undisturbed = list(read_rows(FileRange(file), 1 << 20))
    assert len(undisturbed) == (200 if name == "a.jsonl" else 3000)
    _Unsteady.failures = 3
    assert list(read_rows(FileRange(file), 1 << 20)) == undisturbed
    said = capsys.readouterr().out
    assert said.count("reset by peer, at https://host/?…: read again after") == 3
    assert "word" not in said
    assert "token" not in said
    if file.format.is_divisible:
        _Unsteady.failures = 2
        half = file.size_bytes // 2
        ranges = [FileRange(file, 0, half), FileRange(file, half, file.size_bytes)]
        assert [row for part in ranges for _, row in read_rows(part, 1 << 20)] == [row for _, row in undisturbed]


def test_a_connection_that_stays_broken_is_one_message_without_secrets(unsteady):
    (file,), _ = find_input_files(["unsteady://data/b.jsonl.gz"])
    _Unsteady.failures = 100
    with pytest.raises(UserError, match=r"data/b\.jsonl\.gz cannot be read \(ConnectionResetError: ") as raised:
        list(read_rows(FileRange(file), 1 << 20))
    assert "finished work is kept" in str(raised.value)
    assert "word" not in str(raised.value)


def test_a_file_that_ends_early_is_no_shorter_file(unsteady, monkeypatch):
    (file,), _ = find_input_files(["unsteady://data/a.jsonl"])
    whole = _UnsteadySystem.store["/data/a.jsonl"].getvalue()
    _UnsteadySystem.store["/data/a.jsonl"] = MemoryFile(None, "/data/a.jsonl", whole[:5000])
    with pytest.raises(UserError, match=f"it ends after 5,000 of {len(whole):,} bytes"):
        list(read_rows(FileRange(file), 1 << 20))


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files without ranges; breaks off in the middle of the first answers with a token."""

    broken = 0

    def log_message(self, *_):
        pass

    def translate_path(self, path):
        return super().translate_path(path.partition("?")[0])

    def copyfile(self, source, outputfile):
        if type(self).broken and "token" in self.path:
            type(self).broken -= 1
            outputfile.write(source.read(1000))
            self.close_connection = True
            return
        super().copyfile(source, outputfile)


@contextmanager
def served(directory: Path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_https_files_and_directories_are_read_and_secrets_stay_secret(
    tmp_path, corpus, opened, made_data, monkeypatch, capsys
):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    prepared((corpus / "a.jsonl",), tmp_path / "local", opened, made_data)
    with served(corpus.parent) as host:
        files, _ = find_input_files([f"http://{host}/corpus/"])
        assert {file.name for file in files} == {file.name for file in find_input_files([corpus])[0]}
        _Handler.broken = 2
        url = f"http://me:passwort@{host}/corpus/a.jsonl?token=geheim"
        prepared((url,), tmp_path / "out", opened, made_data)
        said = capsys.readouterr()
        assert _Handler.broken == 0
        assert said.out.count(f"http://{host}/corpus/a.jsonl: ") == 2
        with pytest.raises(UserError) as raised:
            find_input_files([f"http://me:passwort@{host}/nothing.jsonl?token=geheim"])
    assert content(tmp_path / "out") == content(tmp_path / "local")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()).decode("latin-1")
    for text in (written, said.out, said.err, str(raised.value), repr(list_remote)):
        assert "geheim" not in text
        assert "passwort" not in text


def test_urls_that_cannot_be_opened_name_the_package_or_the_protocols(monkeypatch):
    def absent(protocol):
        raise ImportError(f"Install {protocol}")

    for url, message in (
        ("nothing://a", "nothing:// is no known protocol"),
        ("simplecache::s3://a", "one protocol"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            input_paths(url)
    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    for url, package in (("s3://bucket/a", "s3fs"), ("gs://bucket", "gcsfs"), ("hf://datasets/a/b", "huggingface_hub")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is not installed: pip install {package}"):
            input_paths(url)
    assert "key" not in (url_problem("s3://key:secret@bucket/a") or "")


def test_file_urls_are_paths(tmp_path):
    (tmp_path / "a b.jsonl").write_text("{}\n")
    for name in ("a b.jsonl", "a%20b.jsonl"):
        assert input_paths(f"file://{tmp_path}/{name}") == [tmp_path / "a b.jsonl"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"a c\.jsonl does not exist \(is .*a b\.jsonl meant"):
        input_paths(f"file://{tmp_path}/a c.jsonl")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a?sig=1", "https://host/a?…"),
        ("(https://u:p@host/a?sig=1&x=2) failed", "(https://host/a?… failed"),
        ("ftp://u:p%40@host/a", "ftp://host/a"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("no URL: a?b@c", "no URL: a?b@c"),
    ],
)
def test_secrets_of_urls_are_left_out(text, shown):
    assert without_secrets(text) == shown


def test_a_path_shows_no_secret():
    path = RemotePath("https://host/a", "https://u:p@host/a?s", "https://u:p@host/a?s", 3)
    assert "u:p" not in f"{path} {path!r}"


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path begins with."""

    def do_GET(self):
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


def test_what_a_web_server_cannot_give_is_said_as_it_is():
    server = http.server.HTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for status, said in ((404, "does not exist"), (403, "403, message='Forbidden'"), (500, "500, message='Int")):
            for path in (f"{status}/a.jsonl?token=secret", f"{status}/directory"):
                with pytest.raises(UserError, match=said) as raised:
                    list_remote(f"{url}/{path}")
                assert "secret" not in str(raised.value)
    finally:
        server.shutdown()
        server.server_close()
    for path in ("a.jsonl", "directory"):
        with pytest.raises(UserError, match=r"cannot be read .*Cannot connect to host 127"):
            list_remote(f"{url}/{path}")
