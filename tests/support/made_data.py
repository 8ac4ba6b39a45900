"""Tokenizers and texts of the real ones' kinds, made from the example's texts within seconds, the
same on every run.

`make_data` writes a directory laid out as the real data are:

- `tokenizers/llama2`: a sentencepiece BPE with byte fallback; `tokenizers/llama3-base` and
`tokenizers/llama3-instruct`: a
  byte-level BPE with LLaMA-3's pattern, merges and control tokens;
- `pretrain/<category>/<category>-<number>.jsonl` and `sft/<category>/<category>-<number>.jsonl`;
- `pieces_zh_<number of pieces>.jsonl`, twice: Chinese words that occur in the texts, and a few
pieces with other signs.
"""

import json
import random
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from examples.make_base_model import FULL_WIDTH_PUNCTUATION, train_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LLAMA2_SIZE = 2400
LLAMA3_SIZE = 3000
"""Most tokens beside the control tokens."""
NUM_RESERVED = 20
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHARACTER_COUNT = 2
"""Both tokenizers know the Chinese characters that occur at least so often in the example; the
others fall to bytes.
"""
KNOWN_WORDS = 60
"""So many of the most frequent Chinese words are in the LLaMA-3 vocabulary."""
PIECE_COUNTS = (4, 2)
"""The words of the smaller and of the larger file of pieces occur at least so often in the example.
"""
OTHER_PIECES = ("▁你好", "▁在", "。”", "：“", "），", "越来越多的人")
"""Pieces as the real files have them: with a space in front, of signs alone."""
COMMON_SENTENCES = (
    "你好，人工智能可以学习越来越多的中国文字。",
    "意大利的博物馆里，越来越多的人学习人工智能。",
    "你好，中国的博物馆有意大利的深度学习机器吗？",
    "没有问题，越来越多的公司可以使用人工智能。",
    "世界和平，你好吗？",
)
"""With words that tests speak of and the example lacks."""


def make_data(root: Path) -> Path:
    """Writes everything into a new directory and returns it."""
    make_llama2(root / "tokenizers" / "llama2")
    make_llama3(root / "tokenizers" / "llama3-base", "<|end_of_text|>")
    make_llama3(root / "tokenizers" / "llama3-instruct", "<|eot_id|>")
    make_texts(root)
    for least_count in PIECE_COUNTS:
        make_pieces(root, least_count)
    return root


# tokenizers


def make_llama2(directory: Path) -> Path:
    """Writes a LLaMA-2 tokenizer that knows English, Chinese characters and no Chinese word."""
    directory.mkdir(parents=True)
    lines = [*example_texts("en"), *string.ascii_letters, *string.digits, *string.punctuation]
    (directory / "tokenizer.model").write_bytes(train_tokenizer([*lines, *known_characters()], LLAMA2_SIZE))
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    known = enumerate(tokens.values())
    settings = {
        **tokens,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "added_tokens_decoder": {
            str(token_id): {"content": token, **_PLAIN, "special": True} for token_id, token in known
        },
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "legacy": False,
        "model_max_length": int(1e30),
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    special = {name: {"content": token, **_PLAIN} for name, token in tokens.items()}
    _write_json(directory / "special_tokens_map.json", special)
    return directory


def make_llama3(directory: Path, eos_token: str) -> Path:
    """Writes a LLaMA-3 tokenizer that knows English, Chinese characters and few Chinese words.

    Like the real ones, it has no chat template, and a merge for every pair of tokens that makes a
    third.
    """
    directory.mkdir(parents=True)
    words = [word for word, _ in chinese_words(1)[:KNOWN_WORDS]]
    # So often that their bytes are joined before rare English words are.
    lines = [*example_texts("en"), *[*known_characters(), *FULL_WIDTH_PUNCTUATION] * 20, *words * 8]
    vocabulary = _trained_vocabulary(lines)
    control = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
        *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
        *("<|eot_id|>", "<|python_tag|>"),
        *(f"<|reserved_special_token_{number}|>" for number in range(2, NUM_RESERVED)),
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, all_merges(vocabulary), ignore_merges=True))
    tokenizer.pre_tokenizer = _llama3_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    bos = control[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, len(vocabulary))],
            ),
        ]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "added_tokens_decoder": {
            str(len(vocabulary) + number): {"content": token, **_PLAIN, "special": True}
            for number, token in enumerate(control)
        },
        "bos_token": bos,
        "clean_up_tokenization_spaces": True,
        "eos_token": eos_token,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizer",
    }
    _write_json(directory / "tokenizer_config.json", settings)
    _write_json(directory / "special_tokens_map.json", {"bos_token": bos, "eos_token": eos_token})
    return directory


_PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def make_qwen(directory: Path, eos_token: str = "<|endoftext|>") -> Path:
    """Writes a tokenizer of Qwen2's kind: byte-level BPE, NFC, single digits, no BOS token."""
    directory.mkdir(parents=True)
    words = [word for word, _ in chinese_words(1)[:KNOWN_WORDS]]
    lines = [*example_texts("en"), *[*known_characters(), *FULL_WIDTH_PUNCTUATION] * 20, *words * 8]
    vocabulary = _trained_vocabulary(lines)
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
    texts = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    tokenizer = Tokenizer(models.BPE(vocabulary, all_merges(vocabulary)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN.replace("{1,3}", "")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(texts)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = enumerate([*control, *texts], len(vocabulary))
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id): {"content": token, **_PLAIN, "special": token in control} for token_id, token in named
        },
        "additional_special_tokens": control[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos_token,
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    model = json.loads((directory / "tokenizer.json").read_text("utf-8"))["model"]
    _write_json(directory / "vocab.json", model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    return directory


def make_mistral(directory: Path) -> Path:
    """Writes a tokenizer of Mistral v0.3's kind: as LLaMA-2's, with control tokens in the model."""
    make_llama2(directory)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((directory / "tokenizer.model").read_bytes())
    control = ["[INST]", "[/INST]", "[TOOL_CALLS]", *(f"[control_{number}]" for number in range(8, 16))]
    for place, token in enumerate(control):  # after <unk>, <s>, </s>, before the bytes
        piece = model.SentencePiece(piece=token, score=0.0, type=model.SentencePiece.CONTROL)
        model.pieces.insert(3 + place, piece)
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.control_symbols.extend(control)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["added_tokens_decoder"] |= {
        str(token_id): {"content": token, **_PLAIN, "special": True} for token_id, token in enumerate(control, 3)
    }
    _write_json(path, settings)
    return directory


def _llama3_pre_tokenizer() -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _trained_vocabulary(lines: Sequence[str]) -> dict[str, int]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _llama3_pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=LLAMA3_SIZE, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(lines, trainer)
    return trained.get_vocab()


def all_merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of the tokens made: what LLaMA-3's
    conversion lists.
    """
    merges = []
    for token in sorted(vocabulary, key=vocabulary.get):
        splits = [(token[:place], token[place:]) for place in range(1, len(token))]
        pairs = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


# texts


def make_texts(root: Path) -> Path:
    """Writes pre-training documents under `pretrain` and conversations under `sft`; returns the
    root.
    """
    chinese, english = sentences("zh"), sentences("en")
    kinds = {
        "en_docs": (2, 400, lambda numbers: document(numbers, english, " ")),
        "zh_docs": (2, 400, lambda numbers: document(numbers, chinese, "")),
        "zh_articles": (2, 200, lambda numbers: document(numbers, [*chinese, *english[::8]], "")),
        "zh_poetry": (1, 400, lambda numbers: poem(numbers, chinese)),
    }
    for category, (files, records, make) in kinds.items():
        for number in range(files):
            numbers = random.Random(f"{category} {number}")
            lines = [{"source": "", "target": make(numbers), "category": category} for _ in range(records)]
            _write_lines(root / "pretrain" / category / f"{category}-{number:03d}.jsonl", lines)
    short = {"kdconv": [s for s in chinese if len(s) <= 22], "sgd": [s for s in english if len(s) <= 60]}
    for category, pool in short.items():
        numbers = random.Random(category)
        lines = [{"messages": conversation(numbers, pool), "category": category} for _ in range(400)]
        _write_lines(root / "sft" / category / f"{category}-000.jsonl", lines)
    numbers = random.Random("long_qa")
    lines = [{"messages": long_answers(numbers, chinese), "category": "long_qa"} for _ in range(60)]
    _write_lines(root / "sft" / "long_qa" / "long_qa-000.jsonl", lines)
    return root


def document(numbers: random.Random, pool: Sequence[str], between: str) -> str:
    """A text of one to a thousand sentences, most often a few dozen, with headings, lists, numbers
    and addresses.
    """
    paragraphs = []
    left = int(2 ** numbers.uniform(0, 7)) * (8 if numbers.random() < 0.02 else 1)
    while left > 0:
        count = min(left, numbers.randint(1, 6))
        left -= count
        paragraph = between.join(numbers.choices(pool, k=count))
        kind = numbers.randrange(12)
        if kind == 0:
            paragraph = f"{'#' * numbers.randint(1, 3)} {numbers.choice(pool)}\n\n{paragraph}"
        elif kind == 1:
            paragraph = "\n".join(f"- **{number}** {line}" for number, line in enumerate(numbers.choices(pool, k=3), 1))
        elif kind == 2:
            paragraph += f" [{numbers.randint(1, 99999)}](https://example.org/{numbers.randint(1, 999)}/index.html)"
        elif kind == 3:
            paragraph += (
                f"\n\n    value = {numbers.random():.{numbers.randint(1, 9)}f}  # {'-' * numbers.randint(2, 40)}"
            )
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def poem(numbers: random.Random, pool: Sequence[str]) -> str:
    """Four to twelve lines of five characters under a title."""
    characters = [c for sentence in numbers.choices(pool, k=12) for c in sentence if regex.match(r"\p{Han}", c)]
    lines = ["".join(characters[start : start + 5]) for start in range(4, 5 * numbers.randint(5, 13), 5)]
    return "\n".join(["".join(characters[:4]), *(line + "，。"[place % 2] for place, line in enumerate(lines))])


def conversation(numbers: random.Random, pool: Sequence[str]) -> list[dict]:
    """Two to eight turns, each of one sentence."""
    return _turns(numbers.sample(pool, k=2 * numbers.randint(2, 8)))


def long_answers(numbers: random.Random, pool: Sequence[str]) -> list[dict]:
    """One to four turns whose answers are documents."""
    turns = numbers.randint(1, 4)
    return _turns([text for _ in range(turns) for text in (numbers.choice(pool), document(numbers, pool, ""))])


def _turns(texts: Sequence[str]) -> list[dict]:
    return [{"from": ("human", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


# pieces


def make_pieces(root: Path, least_count: int) -> Path:
    """Writes the Chinese words that occur at least so often, most frequent first, and
    `OTHER_PIECES`; returns the file.
    """
    pieces = list(dict.fromkeys([*(word for word, _ in chinese_words(least_count)), *OTHER_PIECES]))
    path = root / f"pieces_zh_{len(pieces)}.jsonl"
    _write_lines(path, [{"piece": piece} for piece in pieces])
    return path


def chinese_words(least_count: int) -> list[tuple[str, int]]:
    """Two to four Chinese characters that follow each other, and how often they do; the most
    frequent first.
    """
    counts: Counter[str] = Counter()
    for sentence in [*example_texts("zh"), *COMMON_SENTENCES * max(PIECE_COUNTS)]:
        for run in regex.findall(r"\p{Han}+", sentence):
            counts.update(run[start : start + n] for n in (2, 3, 4) for start in range(len(run) - n + 1))
    found = [(word, count) for word, count in counts.items() if count >= least_count]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


# sources


def example_texts(language: str) -> list[str]:
    """The lines of the example's documents and conversations in a language, `zh` or `en`."""
    texts = []
    for path in sorted(EXAMPLES.glob(f"*/{language}_*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            texts += [message["content"] for message in record.get("messages", [])]
            texts += [record[name] for name in ("source", "target") if name in record]
    return [line for text in texts for line in text.splitlines() if line]


def sentences(language: str) -> list[str]:
    """The different sentences of the example in a language, and the common ones beside the
    Chinese.
    """
    ends = r"(?<=[。！？])" if language == "zh" else r"(?<=[.!?]) "
    texts = [*example_texts(language), *(COMMON_SENTENCES if language == "zh" else ())]
    return list(dict.fromkeys(part for text in texts for part in regex.split(ends, text) if len(part) > 3))


def known_characters() -> list[str]:
    """The Chinese characters that occur often enough, and those of the common sentences."""
    counts = Counter(regex.findall(r"\p{Han}", "".join(example_texts("zh"))))
    counts.update(regex.findall(r"\p{Han}", "".join(COMMON_SENTENCES * CHARACTER_COUNT)))
    return sorted(character for character, count in counts.items() if count >= CHARACTER_COUNT)


def _write_lines(path: Path, records: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), "utf-8")
