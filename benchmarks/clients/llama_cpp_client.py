"""llama.cpp as a client: token ids, chat prompts and greedy answers of a GGUF file.

Runs alone in an environment with xllamacpp, whose server speaks HTTP as llama.cpp's own does. The
cache of keys and values is in fp32, so that an answer depends on the file and not on the cache.

    python llama_cpp_client.py --model FILE.gguf --output FILE.json [--texts FILE.jsonl]
        [--prompts FILE.jsonl] [--conversations FILE.jsonl] [--max_new_tokens 32]

Every input file holds one JSON value a line: a text, a list of token ids, a list of messages. The
output has `versions`; `ids` of the texts as plain text, without BOS; `chats`, the ids of the prompt
of each conversation, by llama.cpp's own rendering of the file's template; `greedy`, the ids that
continue each prompt, the token that ended the answer included; `stopped`, why each ended (`eos` or
`limit`). A file of LLaMA-2's kind that says that no space comes before text is for chats: a space
is then put before each text, as a user has to; `further` says so.
"""

import argparse
import json
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xllamacpp
from gguf import GGUFReader

CONTEXT = 4096


def main() -> None:
    """Answers all requests and writes the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    for name in ("texts", "prompts", "conversations"):
        parser.add_argument(f"--{name}", type=Path, help="one JSON value a line")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=1, help="of the computation")
    options = parser.parse_args()
    client = LlamaCpp(options.model, options.threads)
    answer: dict[str, Any] = {"versions": {"xllamacpp": version("xllamacpp")}}
    if options.texts:
        space = " " if _lacks_first_space(options.model) else ""
        texts = (space + text for text in _values(options.texts))
        answer["ids"] = [client.ids(text, add_special=False, parse_special=False) for text in texts]
        answer["further"] = {"note": "a space put before each text"} if space else {}
    if options.conversations:
        answer["chats"] = [client.chat_ids(messages) for messages in _values(options.conversations)]
    if options.prompts:
        answers = [client.complete(prompt, options.max_new_tokens) for prompt in _values(options.prompts)]
        answer["greedy"] = [tokens for tokens, _ in answers]
        answer["stopped"] = [reason for _, reason in answers]
    options.output.write_text(json.dumps(answer))


def _values(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _lacks_first_space(model: Path) -> bool:
    fields = GGUFReader(model).fields
    is_sentencepiece = fields["tokenizer.ggml.model"].contents() == "llama"
    return is_sentencepiece and not fields["tokenizer.ggml.add_space_prefix"].contents()


class LlamaCpp:
    """llama.cpp's server in this process, with one model."""

    def __init__(self, model: Path, threads: int):
        """Loads the model and starts the server."""
        settings = xllamacpp.CommonParams()
        settings.model.path = str(model)
        settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = CONTEXT, 1, False, -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(settings)

    def ids(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return self._post("tokenize", body)["tokens"]

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of the prompt for the next answer, as llama.cpp's chat endpoint makes them."""
        text = self._post("apply-template", {"messages": messages})["prompt"]
        return self.ids(text, add_special=True, parse_special=True)

    def complete(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], str]:
        """Ids of the greedy continuation of a prompt, and why it ended."""
        greedy = {"temperature": 0.0, "samplers": ["temperature"], "cache_prompt": False}
        body = {"prompt": prompt, "n_predict": max_new_tokens, "return_tokens": True, **greedy}
        answer = self._post("completion", body)
        return answer["tokens"], answer["stop_type"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._server.listening_address}/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)


if __name__ == "__main__":
    main()
