"""Further keys of fine-tuning records than roles and texts: obeyed, refused, or noted as unread.

Obeyed or refused is what decides what is trained. The names are those of OpenAI, axolotl,
LLaMA-Factory, ms-swift, torchtune, TRL, XTuner and NeMo, compared without case, `_` and `-`.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from colossal_llama.readers.record import RecordError
from colossal_llama.readers.unread_keys import unread

_SYSTEM_PROMPTS = frozenset({
    "system", "systemprompt", "systemmessage", "systeminstruction", "systeminstructions", "sysprompt",
    "developer", "developerprompt", "developermessage", "preprompt", "preamble",
})  # fmt: skip
_TRAIN_FLAGS = frozenset({
    "weight", "train", "training", "trainable", "trained", "istrained", "totrain", "dotrain", "trainon", "trainonturn",
    "loss", "withloss", "hasloss", "useloss", "computeloss", "calculateloss", "lossmask", "lossweight",
    "sampleweight", "outputwithloss", "learn",
})  # fmt: skip
_SKIP_FLAGS = frozenset({
    "mask", "masked", "ismasked", "noloss", "ignoreloss", "skiploss", "notrain", "donttrain", "untrained",
})  # fmt: skip
"""Flags that say the opposite: true stands for an answer that is not trained."""
_UNSUPPORTED = {
    "tools are neither shown nor trained": (
        "tools", "tool", "functions", "function", "toolcalls", "toolcall", "functioncall", "functioncalls",
        "toolcallid", "toolchoice", "toolresponses", "toolresponse", "toolresults", "toolresult",
        "paralleltoolcalls", "availabletools",
    ),
    "reasoning is neither shown nor trained; write it into the answer, or leave it out": (
        "reasoning", "reasoningcontent", "reasoningdetails", "reasoningtext", "thinking", "thinkingcontent",
        "thought", "thoughts", "cot", "chainofthought", "scratchpad", "enablethinking",
    ),
    "only text is trained": (
        "image", "images", "imageurl", "video", "videos", "audio", "audios", "pixelvalues", "attachments",
    ),
    "preferences are not trained": (
        "chosen", "rejected", "rejectedresponse", "rejectedmessages", "ktotag",
    ),
    "an answer is trained as a whole or not": (
        "traindetail", "traindetails", "trainingdetail", "prefix", "lossscale", "lossmasks", "messagelossmask",
        "assistantmasks", "completionmask", "inputids",
    ),
    "it changes the format or the targets of one record, which are those of all": (
        "chattemplate", "chattemplatekwargs", "documents", "rolestotrain", "trainoneos", "trainoneot",
        "trainoninput", "trainoninputs", "trainonprompt", "trainonprompts", "maskhistory", "maskinputs",
        "answeronlyloss", "needeostoken",
    ),
}  # fmt: skip
_SOUNDS_LIKE_A_FLAG = ("train", "loss", "mask", "weight")
_REASONS = {name: reason for reason, names in _UNSUPPORTED.items() for name in names}
_SAYS_NO = frozenset({"", "0", "false", "none", "null", "[]", "{}"})


def is_system_prompt(name: str) -> bool:
    """True for a name of a system prompt."""
    return _plain(name) in _SYSTEM_PROMPTS


def read(keys: Mapping[str, Any], where: str, notes: list[str]) -> bool | None:
    """Reads the keys of a record, or of a message, that its format does not use.

    Args:
        keys: with their values; those without a value (null, "", [], {}) are as if absent.
        where: `message 2`; empty for the record.
        notes: receives `unread_keys.NAME` for each key that has no meaning here.

    Returns:
        True if a flag says that it is trained, False if one says that it is not, else None.

    Raises:
        RecordError: a key asks for what is not supported, or flags contradict each other.
    """
    flags: dict[str, bool] = {}
    for name, value in keys.items():
        plain = _plain(name)
        if value is None or value in ("", [], {}) or (plain in _SYSTEM_PROMPTS and not where):
            continue
        shown = f'"{name}" of {where}' if where else f'"{name}"'
        if plain in _TRAIN_FLAGS or plain in _SKIP_FLAGS:
            flags[name] = _flag(value, shown) is (plain in _TRAIN_FLAGS)
            continue
        if plain in _REASONS:
            if not (value is False or str(value).strip().lower() in _SAYS_NO):
                raise RecordError(f"unsupported_{_reason(name)}", f"{shown} is not supported: {_REASONS[plain]}")
        else:
            _refuse_unknown_instruction(plain, value, shown, is_message=bool(where))
        notes.append(unread(name))
    if len(set(flags.values())) > 1:
        listed = " and ".join(f'"{name}"' for name in flags)
        raise RecordError("unknown_form", f"{listed} contradict each other{f' in {where}' if where else ''}")
    return next(iter(flags.values()), None)


def _refuse_unknown_instruction(plain: str, value: Any, shown: str, is_message: bool) -> None:
    """Refuses a message's system prompt, and what seems to be a flag under a name not known here.

    A record may have texts and numbers under such names: its weight in a mixture, its set.
    """
    if is_message and plain in _SYSTEM_PROMPTS:
        raise RecordError("unsupported_system", f"{shown} is not read: give it to the record, or as the first message")
    is_fact = isinstance(value, str | int | float) and not isinstance(value, bool)
    if (is_message or not is_fact) and any(word in plain for word in _SOUNDS_LIKE_A_FLAG):
        raise RecordError(
            "unknown_flag",
            f'{shown} may decide what is trained, and is not known: name it "train" or "weight", or leave it out',
        )


def _flag(value: Any, shown: str) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RecordError(
        "unsupported_weight",
        f"{shown} is {str(value)[:40]!r}: an answer is trained (1, true) or not (0, false), with "
        "no weight between or beyond",
    )


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").replace(" ", "").lower()


def _reason(name: str) -> str:
    return "".join(sign if sign.isalpha() else "_" for sign in name.lower())
