"""Numbers that belong to a person: mobile numbers, Chinese identity cards, bank cards.

Each has a form, check digits where its kind has them, and surroundings that do not say otherwise.
"""

import re
from collections.abc import Iterator
from datetime import date

from colossal_llama.cleaning.surroundings import Span, context_before

# What numbers are that are none of a person, and what they are where they are.
_OTHER_NUMBER = (
    r"订单|单号|票号|货号|编号|编码|代码|档案|会员|激活|兑换|流水|序列|批次|批号|型号|快递|运单|发票|条码|学号|工号|帖子|版本|时间戳|大小|字节|QQ|ISBN|ISSN|EAN|UPC|DOI|IMEI"
    r"|\b(?:orders?|serial|invoice|tracking|parcel|sku|model|part|ticket|issue|commit|hash|uuid|bytes|size|offset|length"
    r"|timestamp|time|seed|ids?|pid|tso|version|build|population)\b|_id\b"
)
_OTHER_NUMBER_CHARACTERS = 12  # between a word of these and the number
_TELEPHONE = (
    r"电话|手机|联系|致电|拨打|热线|来电|微信|短信|号码|客服"
    r"|\b(?:tel|telephone|(?:cell|mobile)?phone|mobile|cell|call(?:s|ed)?|whatsapp|sms|fax|number is|contact)\b"
)
_CARD = (
    r"卡号|银行卡|信用卡|储蓄卡|借记卡|账号|帐号|账户|帐户|银联"
    r"|\b(?:cards?|account|acct|visa|mastercard|unionpay|amex|debit|credit)\b"
)
_TELEPHONE_CUE = re.compile(rf"(?P<yes>{_TELEPHONE})|{_OTHER_NUMBER}", re.IGNORECASE | re.ASCII)
_CARD_CUE = re.compile(rf"(?P<yes>{_CARD})|{_OTHER_NUMBER}|{_TELEPHONE}", re.IGNORECASE | re.ASCII)
_IDENTITY_CUE = re.compile(r"身份证|证件号|证号|\bidentity card\b|\bID card\b", re.IGNORECASE | re.ASCII)


def numbers(text: str, start: int, end: int, digits: int) -> Iterator[Span]:
    """Finds a person's numbers within a part of a text.

    Args:
        text: with ASCII digits, hyphens and spaces.
        start: of the part, at a digit.
        end: of the part, which has no other characters than digits, spaces, dots, hyphens and
            brackets.
        digits: number of digits in the part.
    """
    if digits >= 14:
        yield from _identity_cards(text, start, end)
        yield from _bank_cards(text, start, end)
    if digits >= 10:
        yield from _chinese_mobile_numbers(text, start, end)
        yield from _american_numbers(text, start, end)
    if digits >= 8 and text[start - 1 : start] == "+":
        yield from _international_number(text, start - 1, end)


def _cue(pattern: re.Pattern[str], text: str, start: int) -> bool | None:
    """True where the last word of the surroundings is the kind's, False where it is another's."""
    context = context_before(text, start)
    is_of_kind = None
    for cue in pattern.finditer(context):
        if cue["yes"] is not None:
            is_of_kind = True
        elif len(context) - cue.end() <= _OTHER_NUMBER_CHARACTERS:
            is_of_kind = False
    return is_of_kind


# --------------------------------------------------------------------------- identity cards (China)

# GB 11643: six digits of a district, the date of birth, a serial number, and a check digit.
_IDENTITY = re.compile(
    r"(?<![0-9])(?<![0-9]\.)[1-9][0-9]{5}[ -]?(?:18|19|20)[0-9]{2}[ -]?(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[ -]?"
    r"[0-9]{3}[0-9Xx](?![0-9])"
)
_IDENTITY_OF_15 = re.compile(
    r"(?<![0-9])[1-9][0-9]{5}[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}(?![0-9])"
)
_PROVINCES = frozenset(
    map(
        str,
        (
            *range(11, 16),
            21,
            22,
            23,
            *range(31, 38),
            *range(41, 47),
            *range(50, 55),
            *range(61, 66),
            71,
            81,
            82,
            83,
            91,
        ),
    )
)
_IDENTITY_WEIGHTS = tuple(pow(2, 17 - place, 11) for place in range(17))


def _identity_cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IDENTITY.finditer(text, start, min(len(text), end + 2)):
        number = re.sub("[ -]", "", match[0])
        if number[:2] in _PROVINCES and _is_date(number[6:14]) and identity_check_digit(number) == number[17].upper():
            yield Span("identity_card", *match.span())
    for match in _IDENTITY_OF_15.finditer(text, start, min(len(text), end + 1)):  # until 1999; no check digit
        if match[0][:2] in _PROVINCES and _IDENTITY_CUE.search(context_before(text, match.start())):
            yield Span("identity_card", *match.span())


def identity_check_digit(number: str) -> str:
    """Computes the last character of an identity card number from its first 17 (ISO 7064, 11-2)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _IDENTITY_WEIGHTS, strict=True))
    return "10X98765432"[total % 11]


def _is_date(digits: str) -> bool:
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


# -------------------------------------------------------------------------------------- bank cards

_BANK_CARD = re.compile(
    r"(?<![0-9A-Za-z_.])(?<![0-9]-)(?:[2-69][0-9]{13,18}(?!-[0-9])|62[0-9]{4}[ -][0-9]{13}"
    # in groups, and not within a table of groups
    r"|(?<!(?<![0-9])[0-9]{4} )(?:[2-69][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3}(?![0-9]|-[0-9]))?"
    r"|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5})(?![ -][0-9]{1,4}(?![0-9-])))"
    r"(?![0-9A-Za-z_]|\.[0-9])"
)
# First digits of issuers (ISO/IEC 7812) by length: UnionPay and Chinese banks, Visa, Mastercard,
# JCB, Discover, American Express. A number without one of these is a card where a word says so.
_ISSUERS = {
    15: re.compile(r"3[47]"),
    16: re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|35(?:2[89]|[3-8])|60|62|64[4-9]|65|81|9558"),
    17: re.compile(r"62"),
    18: re.compile(r"62"),
    19: re.compile(r"62|60[13]|436742|4563|9558|95599"),
}


def _bank_cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _BANK_CARD.finditer(text, start, min(len(text), end + 2)):
        number = re.sub("[ -]", "", match[0])
        if passes_luhn(number):
            cue = _cue(_CARD_CUE, text, match.start())
            issuer = _ISSUERS.get(len(number))
            if cue or (cue is None and issuer is not None and issuer.match(number)):
                yield Span("bank_card", *match.span())


def passes_luhn(number: str) -> bool:
    """True where the last digit is the check digit of the others by Luhn's formula."""
    digits = list(map(int, reversed(number)))
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


# ---------------------------------------------------------------------------------- mobile numbers

_CHINESE_MOBILE = re.compile(
    r"(?:(?<![0-9A-Za-z_])|(?<=[Tt]el)|(?<=hone)|(?<=obile)|(?<=[VvWw][Xx]))(?<![0-9A-Za-z][.-])"
    r"(?:(?:\(?(?:\+|00)86\)?|86)[ -]?)?"
    r"1(?:3[0-9]|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])"
    r"(?:[0-9]{8}|([ .-])[0-9]{4}\1[0-9]{4}|[ -][0-9]{8}|[0-9]{4}[ -][0-9]{4}|[0-9][ -][0-9]{3}[ -][0-9]{4})"
    r"(?![0-9A-Za-z_%]|[.-][0-9A-Za-z])"
)
# Not the marks of Markdown and HTML: **13812345678**, <b>13812345678</b>.
_AMOUNT_BEFORE = re.compile(r"[$¥￥€£=] ?\Z|[#~\\]\Z| [<>*^] \Z|[0-9)][<>*^]\Z|(?<![0-9]{7})(?<![\u4e00-\u9fff])/\Z")
_AMOUNT_AFTER = re.compile(
    r" ?(?:bytes?\b|[KMGT]?i?B\b|字节|元|美元|次|条|行|人|个|毫秒|微秒|纳秒|秒|年|万|亿|件|份|票"
    r"|rows?\b|times\b|[mµun]?s\b"
    r"|[*+^=<>/] ?[0-9]{1,10}(?![0-9]))",
    re.ASCII,
)

# Ten digits of North America; 800 and its like are those of firms, 400 of those in China.
_AMERICAN = re.compile(
    r"(?<![0-9A-Za-z_.+/=-])(?<![0-9] )(?:\+?1[ .-])?"
    r"(?:\((?P<area>[2-9][0-9]{2})\) ?|(?P<area2>[2-9][0-9]{2})(?P<mark>[ .-]))"
    r"[2-9][0-9]{2}(?P<mark2>[ .-])[0-9]{4}"
    r"(?![0-9A-Za-z_%]|[./-][0-9A-Za-z]| [0-9])"
)
_FREE_OF_CHARGE = frozenset(("400", "800", "833", "844", "855", "866", "877", "888", "900"))

_INTERNATIONAL = re.compile(
    r"(?<![0-9A-Za-z_)\]+*/^])\+"
    r"(?P<number>[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,5}(?:[ .-]?[0-9]{2,9}){0,4})"
    r"(?![0-9A-Za-z_%]|\.[0-9])"
)
# E.164: the first digits of numbers in use. One digit for zones 1 and 7, else two or three.
_COUNTRY = re.compile(
    r"1[2-9]|7|2(?:0|7|[1-689][0-9])|3(?:[0-469]|5|7|8)|4(?:[013-9]|2)|5(?:[1-8]|0|9)|6(?:[0-6]|[789])|8(?:[1246]|[058])|9(?:[0-58]|[679])"
)


def _chinese_mobile_numbers(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _CHINESE_MOBILE.finditer(text, max(0, start - 2), min(len(text), end + 2)):
        cue = _cue(_TELEPHONE_CUE, text, match.start())
        before = text[max(0, match.start() - 8) : match.start()]
        is_amount = match[0].isdigit() and (
            _AMOUNT_BEFORE.search(before)
            or _AMOUNT_AFTER.match(text, match.end())
            or int(match[0]) % (1 << 20) == 0  # bytes of memory: 17179869184
        )
        if cue or (cue is None and not is_amount):
            yield Span("mobile_number", *match.span())


def _american_numbers(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _AMERICAN.finditer(text, max(0, start - 2), min(len(text), end + 2)):
        area = match["area"] or match["area2"]
        marks = {match["mark"] or "-", match["mark2"]}
        if area in _FREE_OF_CHARGE or area.endswith("11") or (len(marks) > 1 and match["mark"] is not None):
            continue
        cue = _cue(_TELEPHONE_CUE, text, match.start())
        if cue or (cue is None and (match["area"] is not None or "-" in marks)):
            yield Span("mobile_number", *match.span())


def _international_number(text: str, start: int, end: int) -> Iterator[Span]:
    match = _INTERNATIONAL.match(text, start, min(len(text), end + 2))
    if match is None or match["number"].count(".") == 1:  # a coordinate: +40.7128000
        return
    # Without what follows behind a space, where it is too long: another number, a year.
    written = match["number"]
    while len(number := re.sub("[^0-9]", "", written)) > (11 if written[0] == "1" else 13) and " " in written:
        written = written.rpartition(" ")[0]
    if 9 <= len(number) <= 13 and _COUNTRY.match(number) and (number[0] != "1" or len(number) == 11):
        yield Span("mobile_number", start, start + 1 + len(written))
