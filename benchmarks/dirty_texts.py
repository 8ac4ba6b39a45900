"""Texts that benchmarks/dirty_corpus.py plants, and others that only look like them.

Everything is made up from a random generator and the corpus' own words; nobody is meant.
"""

import random
from collections.abc import Callable, Sequence

import regex

_NO_SPACES = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_UNIT = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}])[\p{L}\p{M}\p{N}])+")
SHINGLE_UNITS = 5

# --- Duplicates ---


def is_without_spaces(text: str) -> bool:
    """Tells whether characters are the units of a text: a third of its letters are Han or kana.

    >>> is_without_spaces("数据 database"), is_without_spaces("the word 数")
    (False, False)
    >>> is_without_spaces("数据库的索引 B+ tree")
    True
    """
    letters = sum(map(str.isalpha, text))
    return 3 * len(_NO_SPACES.findall(text)) >= letters > 0


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Places of the units of a text: its words, and single characters of Han and kana.

    >>> unit_spans("a-bc 数据")
    [(0, 1), (2, 4), (5, 6), (6, 7)]
    """
    return [match.span() for match in _UNIT.finditer(text)]


def shingles(text: str) -> set[tuple[str, ...]]:
    """All sequences of five units, without case, punctuation and white space.

    >>> len(shingles("one two three four five six")), len(shingles("one two"))
    (2, 1)
    """
    units = [text[begin:end].casefold() for begin, end in unit_spans(text)]
    return {tuple(units[at : at + SHINGLE_UNITS]) for at in range(max(1, len(units) - SHINGLE_UNITS + 1))}


def jaccard(first: str, second: str) -> float:
    """Jaccard similarity of two texts by their sequences of five units."""
    left, right = shingles(first), shingles(second)
    return len(left & right) / len(left | right)


def near_duplicate(text: str, similarity: float, generator: random.Random) -> tuple[str, float]:
    """Replaces units of a text, as few as possible, until it is no more similar than wanted.

    Args:
        text: has at least a hundred units.
        similarity: Jaccard similarity; what is returned is the last one at or above it.
        generator: chooses the units, evenly over the text.

    Returns:
        The changed text, and its exact similarity to the first.
    """
    spans = unit_spans(text)
    order = list(range(0, len(spans), SHINGLE_UNITS))
    generator.shuffle(order)
    low, high = 0, len(order)
    while high - low > 1:  # more replaced units are less similar
        middle = (low + high) // 2
        if jaccard(text, _replaced(text, spans, order[:middle])) >= similarity:
            low = middle
        else:
            high = middle
    changed = _replaced(text, spans, order[:low])
    return changed, jaccard(text, changed)


def _replaced(text: str, spans: Sequence[tuple[int, int]], chosen: Sequence[int]) -> str:
    parts, end = [], 0
    for place in sorted(chosen):
        begin, stop = spans[place]
        other_begin, other_stop = spans[(place * 7 + len(spans) // 2) % len(spans)]
        replacement = text[other_begin:other_stop]
        parts += [text[end:begin], replacement if replacement != text[begin:stop] else replacement + "0"]
        end = stop
    return "".join([*parts, text[end:]])


def rewritten_without_change(text: str, generator: random.Random) -> str:
    r"""Writes a text in another form: full-width letters, invisible characters, ends of lines.

    >>> rewritten_without_change("ab\ncd", random.Random(0)).count("\r\n")
    1
    """
    changed = []
    for line in text.split("\n"):
        letters = [
            chr(ord(sign) + 0xFEE0) if sign.isascii() and sign.isalnum() and generator.random() < 0.2 else sign
            for sign in line
        ]
        if letters:
            letters.insert(generator.randrange(len(letters) + 1), generator.choice(("\u200b", "\x07", "\ufeff")))
        changed.append("".join(letters) + "  ")
    return "\r\n".join(changed)


# --- Personal data, and what only looks like it ---


def _digits(generator: random.Random, count: int) -> str:
    return "".join(generator.choices("0123456789", k=count))


def identity_check_digit(first: str) -> str:
    """Check digit of a Chinese identity card (GB 11643-1999) from its first 17 digits.

    >>> identity_check_digit("11010519491231002")
    'X'
    """
    total = sum(int(digit) * pow(2, 17 - at, 11) for at, digit in enumerate(first))
    return "10X98765432"[total % 11]


def luhn_digit(first: str) -> str:
    """Check digit by Luhn's formula (ISO/IEC 7812) of the digits in front of it.

    >>> luhn_digit("7992739871")
    '3'
    """
    total = 0
    for at, digit in enumerate(reversed(first)):
        doubled = int(digit) * (2 if at % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def _email(generator: random.Random) -> str:
    name = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=7))
    host = "".join(generator.choices("bcdfghklmnprstvw", k=6))
    sign = generator.choice((".", "_", "-", "+", ""))
    top, below = generator.choice(("com", "org", "com.cn", "io")), generator.choice(("", "mail."))
    return f"{name}{sign}{_digits(generator, 3)}@{below}{host}.{top}"


def _address(generator: random.Random) -> str:
    first = generator.choice((23, 47, 58, 81, 114, 123, 180, 202, 218))
    return ".".join(map(str, (first, *(generator.randrange(2, 255) for _ in range(3)))))


def _address_of_version_6(generator: random.Random) -> str:
    return "2408:" + ":".join(f"{generator.randrange(0x1000, 0xFFFF):x}" for _ in range(7))


def _mobile(generator: random.Random) -> str:
    number = generator.choice(("130", "138", "147", "150", "159", "166", "177", "186", "199")) + _digits(generator, 8)
    form = generator.choice(("{}", "+86 {}", "+86{}", "{0:.3}-{1}-{2}", "{0:.3} {1} {2}"))
    return form.format(number, number[3:7], number[7:])


def _identity_first(generator: random.Random) -> str:
    region = generator.choice(("110105", "310104", "440305", "510107", "330106", "420111"))
    born = f"{generator.randrange(1950, 2005)}{generator.randrange(1, 13):02d}{generator.randrange(1, 29):02d}"
    return f"{region}{born}{_digits(generator, 3)}"


def _identity_card(generator: random.Random) -> str:
    first = _identity_first(generator)
    return first + identity_check_digit(first)


def _bank_card(generator: random.Random) -> str:
    first = f"622{generator.choice('0258')}{_digits(generator, generator.choice((11, 14)))}"
    number = first + luhn_digit(first)
    return generator.choice((number, " ".join(number[at : at + 4] for at in range(0, len(number), 4))))


def _wrong_identity(generator: random.Random) -> str:
    while True:
        first = _identity_first(generator)
        wrong = first + generator.choice([digit for digit in "0123456789" if digit != identity_check_digit(first)])
        if wrong[-1] != luhn_digit(wrong[:-1]):
            return wrong


def _wrong_card(generator: random.Random) -> str:
    first = f"6225{_digits(generator, 11)}"
    return first + str((int(luhn_digit(first)) + generator.randrange(1, 10)) % 10)


def _longer_number(generator: random.Random) -> str:
    while True:
        number = f"20{generator.randrange(10, 25)}1{generator.choice('3578')}{_digits(generator, 9)}"
        if number[-1] != luhn_digit(number[:-1]):
            return number


def _version(generator: random.Random) -> str:
    return ".".join(str(generator.randrange(0, 20)) for _ in range(4))


def _hardware(generator: random.Random) -> str:
    return ":".join(f"{generator.randrange(256):02X}" for _ in range(6))


PERSONAL_DATA: dict[str, Callable[[random.Random], str]] = {
    "email": _email,
    "ip": _address,
    "ip_v6": _address_of_version_6,
    "mobile": _mobile,
    "identity_card": _identity_card,
    "bank_card": _bank_card,
}
LOOK_ALIKES: dict[str, Callable[[random.Random], str]] = {
    "email": lambda generator: f"icon{_digits(generator, 4)}@{generator.randrange(2, 4)}x.png",
    "ip": lambda generator: generator.choice(
        (f"10.0.{generator.randrange(300, 999)}.{_digits(generator, 4)}", _version(generator))
    ),
    "ip_v6": lambda generator: generator.choice(
        (f"{generator.randrange(10, 24)}:{generator.randrange(10, 60)}:{_digits(generator, 2)}", _hardware(generator))
    ),
    "mobile": lambda generator: generator.choice((_longer_number(generator), f"12{_digits(generator, 9)}")),
    "identity_card": _wrong_identity,
    "bank_card": _wrong_card,
}
"""A picture's name, a version, a time, an order's number, numbers with a wrong check digit …"""
_SENTENCES = {
    "email": ("联系邮箱：{}，欢迎来信。", "Write to {} for details."),
    "ip": ("服务器地址为 {}，端口不变。", "The host at {} does not answer."),
    "ip_v6": ("地址 {} 可以访问。", "It listens on {} too."),
    "mobile": ("请拨打手机 {}，周末也可以。", "Call {} at any time."),
    "identity_card": ("身份证号：{}。", "The identity card has number {}."),
    "bank_card": ("收款卡号 {}，请核对。", "Pay to card {} today."),
}
_OTHER_SENTENCES = {
    "email": ("图标文件为 {}。", "The picture is {} here."),
    "ip": ("版本 {} 已经发布。", "Build {} is out."),
    "ip_v6": ("时间为 {}。", "It began at {}."),
    "mobile": ("订单编号 {}，请保存。", "Order {} was sent."),
    "identity_card": ("流水编号 {}，共两页。", "The entry is {} in the list."),
    "bank_card": ("批次编号 {}，库存充足。", "Lot {} is in stock."),
}


def sentence_with(kind: str, value: str, without_spaces: bool, is_real: bool) -> str:
    """Wraps a value in a sentence of the document's language; look-alikes have their own."""
    sentences = (_SENTENCES if is_real else _OTHER_SENTENCES)[kind]
    return sentences[0 if without_spaces else 1].format(value)


def sentence_beginnings() -> set[str]:
    """Beginnings of the lines that hold a value."""
    sentences = (*_SENTENCES.values(), *_OTHER_SENTENCES.values())
    return {sentence.partition(" {")[0].partition("{")[0] for pair in sentences for sentence in pair}


# --- Garbage ---

_FOREIGN = (
    "Nelayan tua itu kembali ke pelabuhan pada pagi hari ketika kabut masih tebal di atas sungai.",
    "Kemarin kami berbicara tentang keadaan jalan dan jembatan di kota kecil ini.",
    "Tetangga membawa sekeranjang buah pir lalu duduk di dekat jendela sampai malam.",
    "Bengkel dibuka jam tujuh dan baru ditutup setelah semua sepeda selesai diperbaiki.",
    "Tanpa peta mereka tidak akan pernah menemukan jalan melalui hutan yang gelap.",
    "Pada musim dingin banyak rumah di sini masih dipanaskan dengan kayu bakar.",
)
_FOREIGN_CYRILLIC = (
    "Утром над рекой стоял туман, и лодки медленно возвращались к берегу.",
    "Мастерская открывается рано, но закрывается только поздно вечером.",
    "Соседка принесла корзину груш и долго рассказывала о своём саде.",
    "Без карты они никогда не нашли бы дорогу через лес.",
    "Зимой здесь часто топят печи дровами из соседней деревни.",
    "Вчера мы говорили о состоянии дорог и мостов нашего города.",
)


def _repeated_lines(generator: random.Random, sentences: Sequence[str]) -> str:
    lines = generator.sample(sentences, 4)
    return "\n".join(lines * 12)


def _repeated_words(generator: random.Random, sentences: Sequence[str]) -> str:
    return generator.choice(sentences)[:60] * 30


def _symbols(generator: random.Random, sentences: Sequence[str]) -> str:
    words = [sentence[:6] for sentence in generator.sample(sentences, 8)]
    signs = ["".join(generator.choices("#$%^&*~=+|<>{}[]\\/@", k=generator.randrange(3, 12))) for _ in range(120)]
    mixed = signs + words
    generator.shuffle(mixed)
    return " ".join(mixed)


def _digit_table(generator: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(" ".join(_digits(generator, generator.randrange(2, 8)) for _ in range(12)) for _ in range(40))


def _too_short(generator: random.Random, sentences: Sequence[str]) -> str:
    return generator.choice(sentences)[: generator.randrange(3, 9)]


def _latin_language(generator: random.Random, sentences: Sequence[str]) -> str:
    return " ".join(generator.sample(_FOREIGN, len(_FOREIGN)))


def _other_script(generator: random.Random, sentences: Sequence[str]) -> str:
    return " ".join(generator.sample(_FOREIGN_CYRILLIC, len(_FOREIGN_CYRILLIC)))


def _ellipses(generator: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(
        sentence[: generator.randrange(20, 40)] + generator.choice(("…", "...", "……"))
        for sentence in generator.sample(sentences, 30)
    )


def _list(generator: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence[: generator.randrange(12, 30)]}" for sentence in generator.sample(sentences, 40))


def _menu(generator: random.Random, sentences: Sequence[str]) -> str:
    return "\n".join(sentence[: generator.randrange(2, 5)] for sentence in generator.sample(sentences, 60))


def _wrongly_decoded(generator: random.Random, sentences: Sequence[str]) -> str:
    chinese = [sentence for sentence in sentences if is_without_spaces(sentence)] or ["数据中文乱码如此难以阅读"] * 12
    return " ".join(generator.sample(chinese, min(12, len(chinese)))).encode("utf-8").decode("latin-1")


GARBAGE: dict[str, Callable[[random.Random, Sequence[str]], str]] = {
    "repeated_lines": _repeated_lines,
    "repeated_words": _repeated_words,
    "symbols": _symbols,
    "digits": _digit_table,
    "too_short": _too_short,
    "other_language": _latin_language,
    "other_script": _other_script,
    "ellipses": _ellipses,
    "list": _list,
    "menu": _menu,
    "wrongly_decoded": _wrongly_decoded,
}
