"""The rules about single documents in plain Python: what the batched figures must equal."""

import math
from collections import Counter
from collections.abc import Iterator

import regex

IDEOGRAPH = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Bopomofo}|\p{Script=Yi}|ー")
SPACELESS = regex.compile(r"\p{Thai}|\p{Lao}|\p{Khmer}|\p{Myanmar}")
TERMINAL = regex.compile(r"\p{Sentence_Terminal}|[…།༎\u037e]")
PER_WORD = {"spaced": 1.0, "ideographic": 1.5, "run-on": 4.0}


def is_letter(character: str) -> bool:
    return character != "\u200b" and bool(regex.match(r"\p{L}|\p{M}|\p{Cf}|\p{Han}", character))


def is_digit(character: str) -> bool:
    return bool(regex.match(r"\p{N}", character)) and not is_letter(character)


def is_space(character: str) -> bool:
    return character == "\u200b" or bool(regex.match(r"\p{White_Space}", character))


def is_symbol(character: str) -> bool:
    is_named = is_letter(character) or is_digit(character) or is_space(character)
    return not is_named and not regex.match(r"\p{P}", character)


def is_joined(text: str, index: int) -> bool:
    if not 0 <= index < len(text):
        return False
    return (is_letter(text[index]) or is_digit(text[index])) and not stands_alone(text[index])


def is_joint(text: str, index: int) -> bool:
    is_mark = (text[index] < "\x80" or text[index] == "’") and not is_space(text[index])
    return is_mark and is_joined(text, index - 1) and is_joined(text, index + 1)


def stands_alone(character: str) -> bool:
    return is_letter(character) and bool(IDEOGRAPH.match(character) or SPACELESS.match(character))


def words(text: str) -> list[str]:
    found: list[str] = []
    run = ""
    for index, character in enumerate(text):
        if stands_alone(character):
            found += [run, character]
            run = ""
        elif is_letter(character) or is_digit(character) or is_joint(text, index):
            run += character
        else:
            found.append(run)
            run = ""
    return [word for word in [*found, run] if word]


def kind(text: str) -> str:
    units = words(text)
    if 2 * sum(1 for word in units if stands_alone(word[0]) and IDEOGRAPH.match(word)) > len(units):
        return "ideographic"
    if 2 * sum(1 for word in units if stands_alone(word[0]) and SPACELESS.match(word)) > len(units):
        return "run-on"
    return "spaced"


def stripped(text: str) -> str:
    visible = [index for index, character in enumerate(text) if not is_space(character)]
    return text[visible[0] : visible[-1] + 1] if visible else ""


def lines(text: str) -> list[str]:
    return [line for line in map(stripped, text.split("\n")) if line]


def paragraphs(text: str) -> list[str]:
    found, current = [], []
    for line in [*text.split("\n"), ""]:
        if stripped(line):
            current.append(line)
        elif current:
            found.append(stripped("\n".join(current)))
            current = []
    return found


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def repeated(spans: list[str]) -> list[str]:
    return [span for index, span in enumerate(spans) if span in spans[:index]]


def ngram_figures(text: str, top_occurrences: int) -> Iterator[tuple[str, float]]:
    units = words(text)
    characters = sum(map(len, units))
    for n in range(2, 11):
        size = math.floor(n * PER_WORD[kind(text)] + 0.5)
        ngrams = [tuple(units[start : start + size]) for start in range(len(units) - size + 1)]
        if n <= 4:
            often = {ngram: times for ngram, times in Counter(ngrams).items() if times >= top_occurrences}
            most = max(often.values(), default=0)
            longest = max((sum(map(len, ngram)) for ngram, times in often.items() if times == most), default=0)
            yield f"ngram_repetition.top_{n}_gram", share(min(most * longest, characters), characters)
        else:
            covered = set()
            seen = set()
            for start, ngram in enumerate(ngrams):
                if ngram in seen:
                    covered.update(range(start, start + size))
                seen.add(ngram)
            yield f"ngram_repetition.duplicate_{n}_grams", share(sum(len(units[i]) for i in covered), characters)


def ends_sentence(line: str) -> bool:
    for _ in range(3):
        if len(line) > 1 and line[-1] in "\"'”’»)]}）］】〉》」』*_":
            line = line[:-1]
    return bool(TERMINAL.match(line[-1]))


def line_figures(text: str, values: dict) -> Iterator[tuple[str, float]]:
    all_lines = lines(text)
    number = len(all_lines)
    is_ideographic = kind(text) == "ideographic"
    mean = share(sum(map(len, all_lines)), number)
    shortest = values["short_line_ideographs"] if is_ideographic else values["short_line"]
    items = [
        line for line in all_lines if line[0] in "•‣▪▫●○■□◆◇►▶▷·・※★☆" or regex.match(r"[-*+–](\s|\u200b|$)", line)
    ]
    terminal = share(sum(map(ends_sentence, all_lines)), number)
    yield "line_length.mean_line_length", math.nan if is_ideographic else mean
    yield "line_length.mean_line_ideographs", mean if is_ideographic else math.nan
    yield "line_length.short_lines", share(sum(len(line) <= shortest for line in all_lines), number)
    yield "line_ends.list_lines", share(len(items), number)
    yield "line_ends.ellipsis_lines", share(sum(line.endswith(("…", "...", "。。。")) for line in all_lines), number)
    yield "line_ends.terminal_lines", math.nan if kind(text) == "run-on" else terminal
    for name, spans in (("line", all_lines), ("paragraph", paragraphs(text))):
        spans = [span for span in spans if words(span)]
        again = repeated(spans)
        yield f"line_repetition.duplicate_{name}s", share(len(again), len(spans))
        yield f"line_repetition.duplicate_{name}_characters", share(sum(map(len, again)), sum(map(len, spans)))


def character_figures(text: str, stop_words: dict) -> Iterator[tuple[str, float]]:
    units = words(text)
    is_spaced = kind(text) == "spaced"
    visible = [character for character in text if not is_space(character)]
    letters = sum(map(is_letter, text))
    equivalents = len(units) / PER_WORD[kind(text)]
    yield "length.words", len(units) if is_spaced else math.nan
    yield "length.characters", math.nan if is_spaced else len(visible)
    yield "letters.letter_share", share(letters, len(visible))
    yield "han.han_share", share(len(regex.findall(r"\p{Han}", text)), letters)
    yield "digits.digit_share", share(sum(map(is_digit, text)), len(visible))
    yield "symbols.hash_signs", share(len(regex.findall("#+", text)), equivalents)
    yield "symbols.ellipses", share(len(regex.findall(r"\.{3,}|…+", text)), equivalents)
    yield "symbols.symbol_share", share(sum(map(is_symbol, text)), len(visible))
    spaced = [word for word in units if not stands_alone(word[0])]
    yield "word_length.mean_word_length", share(sum(map(len, spaced)), len(spaced)) if is_spaced else math.nan
    wanted = stop_words["words" if is_spaced else "characters"]
    yield (
        "stop_words.stop_words",
        sum(any(form in units for form in (word, word.upper(), word.capitalize())) for word in wanted),
    )


def figures(text: str, settings) -> dict[str, float]:
    """All figures of a text, by the same names as those of `measure`."""
    return {
        **dict(character_figures(text, settings["stop_words"].values)),
        **dict(line_figures(text, settings["line_length"].values)),
        **dict(ngram_figures(text, settings["ngram_repetition"].values["top_occurrences"])),
    }
