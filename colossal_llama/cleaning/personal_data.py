"""Personal data in texts: found, and masked by a stated token; counted by kind.

Found is what its form and its surroundings tell: e-mail and IP addresses (`addresses.py`), mobile
numbers, Chinese identity cards and bank cards (`personal_numbers.py`). Names, postal addresses and
numbers written as words have no such form, and are out of reach.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from colossal_llama.cleaning.addresses import email_addresses, ipv4_addresses, ipv6_addresses
from colossal_llama.cleaning.personal_numbers import numbers
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.surroundings import Span
from colossal_llama.utils.errors import UserError

KINDS = ("email", "identity_card", "bank_card", "mobile_number", "ip")
NOT_MASKED = "none"
IP_SCOPES = ("all", "public")

# A text as candidates are searched in it: 0 for a digit, a hyphen for what may stand between digits
# of a number, and dots. All else, also each character that is not ASCII, is a space. Positions
# stay. A pattern over this takes a tenth of the time that it takes over the text.
_OUTLINE = bytes(
    ord("0") if code in b"0123456789" else ord("-") if code in b" -()" else code if code == ord(".") else ord(" ")
    for code in range(256)
)
_CANDIDATE = re.compile(rb"0[0.-]{5,}0")
_OTHER_THAN_LATIN = bytes(code for code in range(256) if code >= 128 or not chr(code).isalnum())
_FEWEST_LATIN = 4  # a@b.io, 1.1.1.1
_FEWEST_DIGITS_OF_NUMBER = 8  # of an international telephone number
_OTHER_HYPHENS = ("\u2010", "\u2011", "\u2012", "\u2013", "\uff0d")
_NEIGHBOUR_BEFORE = re.compile(r"[0-9A-Za-z_]\Z|[0-9].{0,2}\Z", re.DOTALL)
_NEIGHBOUR_AFTER = re.compile(r"[0-9A-Za-z_]|.{0,2}[0-9]", re.DOTALL)


@dataclass(frozen=True)
class PersonalDataSettings:
    """Tokens that the kinds of personal data are masked by.

    Attributes:
        on: off changes no text.
        email: the token; `none` leaves addresses as they are, and so for each kind.
        ip: the token.
        mobile_number: the token.
        identity_card: the token.
        bank_card: the token.
        ip_scope: `public` leaves addresses of private networks and of documentation, `all` those
            alone that are nobody's: of the own host, of many receivers, masks of networks.
    """

    on: bool = True
    email: str = "<|email|>"
    ip: str = "<|ip|>"
    mobile_number: str = "<|mobile_number|>"
    identity_card: str = "<|identity_card|>"
    bank_card: str = "<|bank_card|>"
    ip_scope: str = "all"

    def __post_init__(self) -> None:
        problems = [problem for kind in KINDS for problem in self._token_problems(kind)]
        if self.ip_scope not in IP_SCOPES:
            problems.append(f"personal_data.ip_scope is {self.ip_scope!r}: choose one of {', '.join(IP_SCOPES)}")
        if problems:
            raise UserError(problems)

    @classmethod
    def of_rules(cls, rules: RuleSettings) -> "PersonalDataSettings":
        """Returns what the rule `personal_data` says.

        Raises:
            UserError: a token cannot be told from words.
        """
        rule = rules["personal_data"]
        return cls(on=rule.on, **rule.values)

    def _token_problems(self, kind: str) -> Iterator[str]:
        token = getattr(self, kind)
        if token == NOT_MASKED:
            return
        if not token.isprintable() or token != token.strip() or token.isalnum() or not token:
            yield (
                f"personal_data.{kind} is {token!r}: give a token in one line that is no word, such as <|{kind}|>, "
                f"or {NOT_MASKED} to leave this kind as it is"
            )

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Token of each kind that is masked."""
        tokens = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: token for kind, token in tokens.items() if token != NOT_MASKED}


def mask(text: str, settings: PersonalDataSettings) -> tuple[str, Mapping[str, tuple[int, int]]]:
    """Replaces personal data by the tokens of their kinds. Masking a text again changes nothing.

    Returns:
        The text, and by kind how many were replaced, and by how many characters it is shorter.
    """
    changes: dict[str, tuple[int, int]] = {}
    while spans := find(text, settings):
        tokens = [settings.kinds[span.kind] for span in spans]
        for (kind, start, end), token in zip(spans, tokens, strict=True):
            times, removed = changes.get(kind, (0, 0))
            changes[kind] = (times + 1, removed + end - start - len(token))
        masked = _replaced(text, spans, tokens)
        # A number that stood next to one of these may be told from what it was part of, now.
        if not any(_has_neighbours(text, span) for span in spans):
            return masked, changes
        text = masked
    return text, changes


def find(text: str, settings: PersonalDataSettings) -> list[Span]:
    """Finds personal data of the kinds that are masked: in order, and apart from each other."""
    if not settings.on or not _has_latin(text):
        return []
    tokens = settings.kinds
    for token in tokens.values():
        if token in text:  # their words say nothing of what follows
            text = text.replace(token, "\n" * len(token))
    spans = _apart(email_addresses(text)) if "email" in tokens else []
    if spans:
        text = _replaced(text, spans, ["\n" * (span.end - span.start) for span in spans])
    public_only = settings.ip_scope == "public"
    if "ip" in tokens and ":" in text:
        spans += ipv6_addresses(text, public_only)
    spans += _in_numbers(text, public_only)
    return _apart(span for span in spans if span.kind in tokens) if spans else spans


def _has_latin(text: str) -> bool:
    """True for as many ASCII letters or digits as the shortest addresses have; quick for poems."""
    return text.isascii() or len(text.encode("ascii", "replace").translate(None, _OTHER_THAN_LATIN)) >= _FEWEST_LATIN


def _in_numbers(text: str, public_only: bool) -> Iterator[Span]:
    """Finds what consists of digits and the marks between them."""
    if not text.isascii():
        for mark in _OTHER_HYPHENS:
            text = text.replace(mark, "-")
        text = text.replace("\xa0", " ")
    outline = text.encode("ascii", "replace").translate(_OUTLINE)
    for candidate in _CANDIDATE.finditer(outline):
        start, end = candidate.span()
        if outline.count(b".", start, end) >= 3:
            yield from ipv4_addresses(text, start, end, public_only)
        digits = outline.count(b"0", start, end)
        if digits >= _FEWEST_DIGITS_OF_NUMBER:
            yield from numbers(text, start, end, digits)


def _has_neighbours(text: str, span: Span) -> bool:
    before = text[max(0, span.start - 3) : span.start]
    return bool(_NEIGHBOUR_BEFORE.search(before) or _NEIGHBOUR_AFTER.match(text, span.end))


def _replaced(text: str, spans: Sequence[Span], texts: Sequence[str]) -> str:
    """The text with another one in the place of each span; these are in order, and apart."""
    parts: list[str] = []
    position = 0
    for span, replacement in zip(spans, texts, strict=True):
        parts += (text[position : span.start], replacement)
        position = span.end
    return "".join((*parts, text[position:]))


def _apart(spans: Iterable[Span]) -> list[Span]:
    """Spans in order. Of overlapping ones the kind named first in `KINDS` remains, as one span."""
    apart: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if apart and span.start < apart[-1].end:
            last = apart[-1]
            kind = min(last.kind, span.kind, key=KINDS.index)
            apart[-1] = Span(kind, last.start, max(last.end, span.end))
        else:
            apart.append(span)
    return apart
