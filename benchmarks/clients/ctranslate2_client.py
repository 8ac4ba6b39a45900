"""Converts a model to CTranslate2, encodes texts with its vocabulary, and answers prompts greedily.

python ctranslate2_client.py --model DIR --prompts P.jsonl --output O.json

Texts are not encoded: CTranslate2 has no tokenizer.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter


def main() -> None:
    """Writes the version, and the new ids of each prompt with the token that ended the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--prompts", type=Path, required=True, help="a JSON list of ids a line")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="of each prompt")
    options = parser.parse_args()
    prompts = [json.loads(line) for line in options.prompts.read_text().splitlines()]
    settings = json.loads((options.model / "generation_config.json").read_text())
    stops = settings["eos_token_id"] if isinstance(settings["eos_token_id"], list) else [settings["eos_token_id"]]
    with tempfile.TemporaryDirectory() as directory:
        converted = f"{directory}/model"
        TransformersConverter(str(options.model)).convert(converted, quantization="float32")
        generator = ctranslate2.Generator(converted, compute_type="float32", intra_threads=1)
        vocabulary = json.loads(Path(converted, "vocabulary.json").read_text(encoding="utf-8"))
        answers = []
        for prompt in prompts:
            (found,) = generator.generate_batch(
                [[vocabulary[token] for token in prompt]],
                max_length=options.max_new_tokens,
                sampling_topk=1,
                include_prompt_in_result=False,
                return_end_token=True,
                end_token=stops,
            )
            answers.append(found.sequences_ids[0])
    result = {"versions": {"ctranslate2": version("ctranslate2")}, "greedy": answers}
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
