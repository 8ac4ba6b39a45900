"""The size of compressed content is estimated from its beginning, whatever the compression is."""

import base64
import bz2
import gzip
import lzma
import random
from functools import partial

import pyarrow as pa
import pytest
from pyarrow import parquet

from colossal_llama.readers.content_size import total_bytes
from colossal_llama.readers.formats import COMPRESSIONS
from colossal_llama.readers.listing import find_input_files
from tests.support.data_files import compressed

TEXTS = [base64.b64encode(random.Random(number).randbytes(100_000)).decode() for number in range(90)]
CONTENT = "".join(f'{{"text": "{text}"}}\n' for text in TEXTS).encode()
COMPRESS = {
    ".gz": partial(gzip.compress, compresslevel=1),
    ".bz2": bz2.compress,
    ".xz": partial(lzma.compress, preset=0),
}
"""At their fastest; any others as elsewhere."""


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_size_is_that_of_the_content(compression, share, tmp_path):
    content = CONTENT[: int(share * len(CONTENT))]
    compress = COMPRESS.get(compression) or partial(compressed, ending=compression)
    (tmp_path / f"a.jsonl{compression}").write_bytes(compress(content))
    files, _ = find_input_files([tmp_path])
    assert total_bytes(files) == pytest.approx(len(content), rel=0.12)  # bzip2 decompresses 900 kB at once
    assert share in (0.0, 1.0) or total_bytes(files) == len(content)


def test_a_parquet_file_has_the_size_of_its_columns(tmp_path):
    parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    files, _ = find_input_files([tmp_path])
    assert files[0].size_bytes < 0.8 * len(CONTENT)
    assert total_bytes(files) == pytest.approx(len(CONTENT), rel=0.05)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.csv.bz2", "a.txt.zst", "a.parquet"])
def test_a_damaged_file_counts_as_it_is_on_the_disk(name, tmp_path):
    (tmp_path / name).write_bytes(b"no such thing")
    files, _ = find_input_files([tmp_path])
    assert total_bytes(files) == len(b"no such thing")
