"""Tokenizer and chat format of a merged model: one model's vocabulary, perhaps another's chats.

A chat vector gives back answers in the chat model's format. Without its template, its control
tokens and its ends of turns no program would ask for them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.model.config_file import CONFIG_FILE, GENERATION_CONFIG_FILE, read_generation_config
from colossal_llama.model.merging.arguments import NONE
from colossal_llama.model.merging.sources import MergeSource
from colossal_llama.tokenizer.loading import REPEATED_FILES, VOCABULARY_FILES, stored_chat_template
from colossal_llama.tokenizer.settings_file import CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG, settings_contents
from colossal_llama.utils.errors import UserError

_SPECIAL = ("bos_token", "eos_token", "pad_token")
_TEMPLATE_KEYS = ("chat_template", "chat_template_date", "trained_chat_template_fingerprint")
"""Of tokenizer_config.json: the template, and what a run of training recorded about it."""
_MAP_FILE, _DEFINITION = "special_tokens_map.json", "tokenizer.json"


@dataclass(frozen=True)
class ChatFormat:
    """The tokenizer of the result.

    Attributes:
        owner: model whose tokenizer it is.
        donor: model whose chat format it gets; None where it keeps the owner's.
        added: tokens of the donor that the owner lacks, in the order of their new ids.
    """

    owner: MergeSource
    donor: MergeSource | None
    added: Sequence[Any]

    @property
    def template_of(self) -> str | None:
        """Name of the model whose chat template the result has; None without one."""
        source = self.donor or self.owner
        return source.name if stored_chat_template(source.directory) is not None else None

    @property
    def first_added_id(self) -> int:
        """Id of the first added token."""
        return max(self.owner.vocabulary.values()) + 1

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token → id of the result."""
        added = {token.content: self.first_added_id + number for number, token in enumerate(self.added)}
        return {**self.owner.vocabulary, **added}

    @property
    def rows(self) -> int:
        """Rows of the result's embeddings: the owner's, unless the added tokens need more."""
        return max(self.owner.rows, self.first_added_id + len(self.added))


def choose_format(sources: Sequence[MergeSource], owner: MergeSource, chat_of: MergeSource | str | None) -> ChatFormat:
    """Decides whose chat format the result has.

    Args:
        sources: all models, in the order in which they are asked for a template.
        owner: the model whose tokenizer the result has.
        chat_of: the model of `--chat_of`, `none`, or None: the owner's, or else the only one.

    Raises:
        UserError: the model that was asked for has no template, or several have different ones.
    """
    if chat_of == NONE:
        return ChatFormat(owner, None, ())
    templates = {source.name: stored_chat_template(source.directory) for source in sources}
    if isinstance(chat_of, MergeSource):
        if templates[chat_of.name] is None:
            raise UserError(f"--chat_of {chat_of.name}: its tokenizer has no chat template; give a model that has one")
        donor = chat_of
    else:
        found = [source for source in sources if templates[source.name] is not None]
        if templates[owner.name] is not None or not found:
            return ChatFormat(owner, None, ())
        if len({templates[source.name] for source in found}) > 1:
            names = ", ".join(source.name for source in found)
            raise UserError(
                f"{owner.name}, whose tokenizer the result has, has no chat template, and those of {names} differ: "
                f"give --chat_of with one of them, or --chat_of {NONE}"
            )
        donor = found[0]
    if donor is owner:
        return ChatFormat(owner, None, ())
    known = owner.vocabulary
    added = [token for _, token in sorted(donor.tokenizer.added_tokens_decoder.items()) if token.content not in known]
    return ChatFormat(owner, donor, added)


def other_templates(sources: Sequence[MergeSource], chosen: ChatFormat) -> list[str]:
    """Names of models whose chat template is not that of the result."""
    kept = stored_chat_template((chosen.donor or chosen.owner).directory)
    templates = {source.name: stored_chat_template(source.directory) for source in sources}
    return [name for name, template in templates.items() if template not in (None, kept)]


def tokenizer_files(chosen: ChatFormat) -> dict[str, bytes]:
    """Content of the tokenizer's files by name."""
    directory = chosen.owner.directory
    vocabulary = (directory / name for name in (*VOCABULARY_FILES, *REPEATED_FILES))
    files = {path.name: path.read_bytes() for path in vocabulary if path.is_file()} | settings_contents(directory)
    if chosen.donor is None:
        return files
    files = {name: content for name, content in files.items() if not _is_template_file(name)}
    donors = settings_contents(chosen.donor.directory)
    files |= {name: content for name, content in donors.items() if _is_template_file(name)}
    settings = _parsed(files.get(TOKENIZER_CONFIG))
    settings = {key: value for key, value in settings.items() if key not in _TEMPLATE_KEYS}
    given = _parsed(donors.get(TOKENIZER_CONFIG))
    settings |= {key: given[key] for key in _TEMPLATE_KEYS if key in given} | _special_tokens(chosen.donor)
    files[TOKENIZER_CONFIG] = _json(_with_added_tokens(settings, chosen))
    if _MAP_FILE in files:
        files[_MAP_FILE] = _json(_parsed(files[_MAP_FILE]) | _special_tokens(chosen.donor))
    if _DEFINITION in files and chosen.added:
        definition = json.loads(files[_DEFINITION])
        definition["added_tokens"] += [{"id": token_id, **settings} for token_id, settings in _entries(chosen)]
        files[_DEFINITION] = json.dumps(definition, ensure_ascii=False).encode("utf-8")
    return files


def _is_template_file(name: str) -> bool:
    return name in (CHAT_TEMPLATE_FILE, "chat_template.json") or name.startswith("additional_chat_templates/")


def _special_tokens(donor: MergeSource) -> dict[str, str]:
    tokens = {name: getattr(donor.tokenizer, name) for name in _SPECIAL}
    return {name: str(token) for name, token in tokens.items() if token is not None}


def _entries(chosen: ChatFormat) -> list[tuple[int, dict[str, Any]]]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        (chosen.first_added_id + number, {name: getattr(token, name) for name in names})
        for number, token in enumerate(chosen.added)
    ]


def _with_added_tokens(settings: dict[str, Any], chosen: ChatFormat) -> dict[str, Any]:
    """Adds the tokens to tokenizer_config.json; a file without the list gets the owner's, too."""
    if not chosen.added:
        return settings
    listed = settings.get("added_tokens_decoder") or {
        str(token_id): {name: getattr(token, name) for name in ("content", "lstrip", "rstrip", "normalized", "special")}
        for token_id, token in chosen.owner.tokenizer.added_tokens_decoder.items()
    }
    return {**settings, "added_tokens_decoder": {**listed, **{str(key): value for key, value in _entries(chosen)}}}


def model_configs(chosen: ChatFormat, is_tied: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """Content of config.json and generation_config.json by name."""
    owner, donor = chosen.owner, chosen.donor
    config = {key: value for key, value in owner.config.items() if key not in ("dtype", "_name_or_path")}
    config |= {"vocab_size": chosen.rows, "tie_word_embeddings": is_tied, "torch_dtype": dtype}
    generation = read_generation_config(owner.directory)
    if donor is not None:
        config |= _special_ids(chosen)
        generation = read_generation_config(donor.directory) or generation
        generation |= {**_special_ids(chosen), "eos_token_id": _stop_ids(chosen)}
        generation.pop("_from_model_config", None)  # marked ones transformers 4.51 derives from config.json again
    configs = {CONFIG_FILE: config}
    return configs | ({GENERATION_CONFIG_FILE: generation} if generation else {})


def _special_ids(chosen: ChatFormat) -> dict[str, int]:
    vocabulary, tokens = chosen.vocabulary, _special_tokens(chosen.donor) if chosen.donor else {}
    return {f"{name}_id": vocabulary[token] for name, token in tokens.items()}


def _stop_ids(chosen: ChatFormat) -> int | list[int]:
    """Tokens that end an answer: the donor's, by their ids in the result, and the owner's EOS."""
    assert chosen.donor is not None, "stops are those of a donor"
    donor, vocabulary = chosen.donor, chosen.vocabulary
    configured: list[Any] = []
    for settings in (read_generation_config(donor.directory), donor.config):
        ids = settings.get("eos_token_id")
        configured += ids if isinstance(ids, list) else [ids]
    token_of: Mapping[int, str] = {token_id: token for token, token_id in donor.vocabulary.items()}
    names = [token_of[token_id] for token_id in configured if token_id in token_of]
    names += [donor.tokenizer.eos_token, chosen.owner.tokenizer.eos_token]
    stops = list(dict.fromkeys(vocabulary[name] for name in names if name in vocabulary))
    return stops if len(stops) > 1 else stops[0]


def _parsed(content: bytes | None) -> dict[str, Any]:
    return json.loads(content) if content else {}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
