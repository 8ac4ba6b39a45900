"""Encodes texts by the sentencepiece package alone, from a model directory's tokenizer.model.

python sentencepiece_client.py --model DIR --texts T.jsonl --output O.json

Prompts are not answered: there is no model.
"""

import argparse
import json
from pathlib import Path

import sentencepiece


def main() -> None:
    """Writes the version, and the ids of each text without control tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory with a tokenizer.model")
    parser.add_argument("--texts", type=Path, required=True, help="a JSON string a line")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options, _ = parser.parse_known_args()  # answers need a model
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.model / "tokenizer.model"))
    texts = [json.loads(line) for line in options.texts.read_text(encoding="utf-8").splitlines()]
    result = {"versions": {"sentencepiece": sentencepiece.__version__}, "ids": tokenizer.encode(texts)}
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
