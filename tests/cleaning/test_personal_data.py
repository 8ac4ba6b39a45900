"""Personal data: what is personal is masked, in every form; versions, dates and orders are not."""

import itertools
import re
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.cleaning.personal_data import KINDS, PersonalDataSettings, find, mask
from colossal_llama.cleaning.personal_numbers import identity_check_digit, passes_luhn
from colossal_llama.cleaning.rule_settings import read_rules
from colossal_llama.utils.errors import UserError

SETTINGS = PersonalDataSettings()

PERSONAL = {
    "email": [
        "写信到⟦zhang.san+news@mail.example.com.cn⟧，谢谢",
        "Contact: <⟦Neil@x.org⟧>",
        "mailto:⟦a_b-c%d@sub.domain.io⟧?subject=hi",
        "邮箱⟦12345678@qq.com⟧或⟦wang@163.com⟧",
        "⟦josé.müller@grün.de⟧ and ⟦иван@почта.com⟧",
        "⟦a@b.xn--p1ai⟧.",
        "⟦user＠mail.com⟧",
        "⟦name (at) example (dot) com⟧, ⟦name [AT] mail.example [DOT] org⟧",
        "⟦guido at python dot org⟧",
        "⟦guido&#64;python.org⟧",
        "https://x.org/?to=⟦a%40b.com⟧&n=1",
        "//comments, see ⟦me@here.net⟧",
        "网址https://www.site.cn和邮箱⟦me@site.cn⟧",
    ],
    "ip": [
        "来自⟦221.194.44.231⟧的访问",
        "http://⟦52.12.33.200⟧:8080/path",
        "Windows ⟦192.168.3.7⟧",
        "ssh root@⟦192.168.1.105⟧, then 127.0.0.1",
        "⟦192.168.1.1⟧-⟦192.168.1.20⟧",
        "- host: ⟦10.0.1.7⟧",
        "服务器 ⟦1.2.3.4⟧",
        "dial ⟦8.8.8.8⟧:53",
        "⟦2001:db8:85a3::8a2e:370:7334⟧, ⟦fe80::1⟧/64, [⟦2400:3200::1⟧]:80",
        "⟦2001:0db8:0000:0000:0000:ff00:0042:8329⟧.",
    ],
    "mobile_number": [
        "手机⟦13812345678⟧。",
        "联系电话：⟦138-1234-5678⟧ ⟦+86 138 1234 5678⟧ ⟦(+86)13812345678⟧ ⟦0086-13812345678⟧",
        "⟦8613912345678⟧ tel⟦13912345678⟧ Phone⟦13712345678⟧ vx⟦13612345678⟧",
        "张三⟦19912345678⟧，李四/⟦16612345678⟧/⟦17012345678⟧",
        "⟦138–1234–5678⟧ ⟦138－1234－5678⟧ ⟦138\xa01234\xa05678⟧ ⟦1381234 5678⟧",
        'phone=⟦13812345678⟧ "mobile": "⟦13812345678⟧"',
        "Call ⟦+44 7911 123456⟧ or ⟦+1 (415) 555-2671⟧ or ⟦+4915112345678⟧ or ⟦+81-90-1234-5678⟧",
        "⟦+44 7249 225565⟧ 2024-03-12, ⟦+1 415-555-2671⟧ 2024",
        "**⟦13812345678⟧** <b>⟦13912345678⟧</b><br>⟦13712345678⟧|⟦13612345678⟧|",
        "`⟦13512345678⟧` *⟦13112345678⟧*\n> ⟦13212345678⟧\n# ⟦13312345678⟧",
        "版本发布。⟦13812345678⟧ the build of my friend ⟦13912345678⟧",
        "⟦(415) 555-2671⟧, ⟦415-555-2671⟧, phone ⟦415.555.2671⟧, my number is ⟦415 555 2671⟧",
    ],
    "identity_card": [
        "身份证号⟦11010519491231002X⟧",
        "⟦11010519491231002x⟧ ⟦440308199901010012⟧",
        "ID⟦11010519491231002X⟧",
        "⟦110105 19491231 002X⟧",
        "身份证：⟦110105491231002⟧",
    ],
    "bank_card": [
        "卡号⟦6222021234567890128⟧",
        "⟦4111 1111 1111 1111⟧, ⟦5500-0000-0000-0004⟧ ⟦340000000000009⟧ ⟦3400 000000 00009⟧",
        "⟦4111111111111111⟧ 12/25 ⟦4111 1111 1111 1111⟧ 2025-12-01",
        "⟦6200000000000005⟧",
        "account ⟦30569309025904⟧",
    ],
}

IMPERSONAL = [
    # versions, sections, names of files and programs
    "version 1.2.3.4, v10.20.30.40, Chrome/115.0.0.0 Safari/537.36, 版本 8.5.0.12, log4j-2.17.100.1.jar",
    "version 91.124.3.4, 版本：100.2.3.4, section 10.1.99.2, Agent/99.1.2.3",
    "Oracle 10.2.0.4, upgraded to 10.2.0.5; Firefox 115.2.1.100, driver 99.105.4.1",
    "3.1.2.1 Introduction\n10.1.2.3 Results\n  2.6.34.15 EOL\nOID 1.3.6.1.4.1.311 and 1.2.3.4-beta",
    "0.0.0.0 127.0.0.1 255.255.255.0 239.1.1.1 10.0.0.0/8 192.168.0.0/16 ::1 300.1.2.3 1.2.3.4.5",
    "std::cout << a::b::c; fe::x; 2006::\n\n  12:30:45 00:1A:2B:3C:4D:5E ad:be:ef",
    "icon@2x.png, vue@3.2.1, lodash@4.17.21.tgz, getty@tty1.service, @app.route, a@b, x = q@k.transpose(1)",
    "git clone git@github.com:org/repo.git ssh://git@github.com/x https://user:pw@host.com/ umac-128@openssh.com",
    "look at example.com, see the dot com boom; 50% at (a)",
    # dates and times
    "2021-05-06 12:30:45.123456, 20210506123045, 1620304245, 1620304245123, 2021/05/06 08:00 2021年5月6日",
    "2020-01-01 - 2023-12-31 2021.05.06 19491001 15:04:05.000000 +0800",
    # books, articles, goods
    "ISBN 978-7-111-12345-6, 9787111123453, 0-306-40615-2, 7-302-12345-X ISSN 1234-5678 doi:10.1000/182345678901",
    "EAN 4006381333931 IMEI 490154203237518",
    # orders, serial numbers, hashes, sizes
    "订单号：13812345678，快递单号 15012345678，流水号6222021234567890128，order 4111111111111111",
    "commit 13812345678, id=13912345678, user_id: 13912345678, QQ群 13812345678, sha 1a13812345678f",
    "d41d8cd98f00b204e9800998ecf8427e 550e8400-e29b-41d4-a716-446655440000 e3b0c44298fc1c14",
    "17179869184 bytes, 15032385536 字节, 13800000000元, $13812345678, 15032385536",
    "size > 13812345678, 7*13812345678, n < 13912345678, ~13812345678, #13812345678, 13812345678 * 2",
    "0.13812345678 3.14159265358979 13812345678.5 1,381,234,567 13812345678% https://x.cn/13812345678.html",
    # numbers that fail a check, or belong to nobody
    "110105194912310021 110105194913310025 6222021234567890123 4111111111111112 1234567890123456",
    "12812345678 15412345678 138123456789 port 8080, 65535",
    "1234 5678 9012 3456 7890  4111 1111 1111 1111 22 33",
    "400-815-9888 800-555-1234 010-62345678 123-456-7890 555-1234 +0800 +12 x+13812345678 +40.7128000",
    "+1234567890123456",
    "138****5678 110105********002X zhang***@qq.com",
]


def unmarked(marked: str) -> tuple[str, list[str]]:
    """A text and what is marked in it by brackets."""
    return re.sub("[⟦⟧]", "", marked), re.findall("⟦(.*?)⟧", marked)


@pytest.mark.parametrize(("kind", "marked"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_personal_data_are_found_in_every_form(kind, marked):
    text, expected = unmarked(marked)
    spans = find(text, SETTINGS)
    assert [text[span.start : span.end] for span in spans] == expected
    assert {span.kind for span in spans} == {kind}


@pytest.mark.parametrize("text", IMPERSONAL)
def test_nothing_else_is_found(text):
    assert [text[span.start : span.end] for span in find(text, SETTINGS)] == []


def test_masks_are_counted_by_kind_with_the_characters_they_remove():
    text = "a@b.com, 13812345678, 13912345678; c"
    masked, changes = mask(text, SETTINGS)
    assert masked == "<|email|>, <|mobile_number|>, <|mobile_number|>; c"
    assert changes == {"email": (1, 7 - 9), "mobile_number": (2, 22 - 34)}
    assert mask("nothing here", SETTINGS) == ("nothing here", {})


def test_tokens_are_the_user_s_and_kinds_have_their_switches():
    settings = PersonalDataSettings(email="email@example.com", mobile_number="none", ip="[IP]")
    text = "x@y.cn 13812345678 192.168.1.5"
    assert mask(text, settings)[0] == "email@example.com 13812345678 [IP]"
    assert mask("email@example.com", settings) == ("email@example.com", {})
    assert mask(text, PersonalDataSettings(on=False)) == (text, {})


def test_public_addresses_alone():
    settings = PersonalDataSettings(ip_scope="public")
    text = "10.1.2.3 192.168.1.5 203.0.113.9 fe80::1 2001:db8::1 and 93.184.216.34 2606:2800:220:1::25"
    assert mask(text, settings)[0] == "10.1.2.3 192.168.1.5 203.0.113.9 fe80::1 2001:db8::1 and <|ip|> <|ip|>"


def test_wrong_settings_are_refused_all_at_once():
    with pytest.raises(UserError) as error:
        PersonalDataSettings(email="", ip="false", bank_card=" x", ip_scope="private")
    assert len(error.value.problems) == 4


def test_the_rule_of_the_presets():
    assert PersonalDataSettings.of_rules(read_rules("web")) == PersonalDataSettings()
    assert PersonalDataSettings.of_rules(read_rules("code-docs")) == PersonalDataSettings(ip_scope="public")
    assert not PersonalDataSettings.of_rules(read_rules(off=["personal_data"])).on


@pytest.mark.parametrize("token", ["[email]", "'[email]'", "#email#", "{{email}}", "@email"])
def test_tokens_of_the_command_line_stand_as_they_are_written(token):
    settings = PersonalDataSettings.of_rules(read_rules(changes=[f"personal_data.email={token}"]))
    token = token.strip("'")
    assert mask("a@b.com, c@d.org", settings)[0] == f"{token}, {token}"


def test_check_digits():
    assert identity_check_digit("11010519491231002") == "X"  # the example of GB 11643
    assert passes_luhn("49927398716")
    assert not passes_luhn("49927398717")


# ------------------------------------------------------------------------------------- properties

_DIGITS = st.text("0123456789", min_size=1, max_size=12)
_PIECES = st.sampled_from(
    [text for texts in PERSONAL.values() for marked in texts for text in unmarked(marked)[1]]
    + [
        *IMPERSONAL,
        *"  \n\t,.:;-–/=@#%()<>|_+x，。：（）",
        "电话",
        "订单",
        "version ",
        "host ",
        "卡号",
        "at ",
        " dot ",
        "//",
    ]
    + ["<|email|>", "<|ip|>", "<|mobile_number|>", "中文", "word", "1", "86", "::", "ff"]
)
_TEXTS = st.lists(st.one_of(_PIECES, _DIGITS, st.text(max_size=4)), max_size=12).map("".join)


@given(_TEXTS)
def test_masking_again_changes_nothing(text):
    masked, _ = mask(text, SETTINGS)
    assert mask(masked, SETTINGS) == (masked, {})


@given(_TEXTS)
def test_nothing_but_the_spans_is_changed(text):
    spans = find(text, SETTINGS)
    assert all(span.kind in KINDS and 0 <= span.start < span.end <= len(text) for span in spans)
    assert all(first.end <= second.start for first, second in itertools.pairwise(spans))
    masked, changes = mask(text, SETTINGS)
    assert sum(removed for _, removed in changes.values()) == len(text) - len(masked)
    position, rest = 0, text
    for part in re.split(r"<\|[a-z_]+\|>", masked):  # what is left stands in the text, in this order
        position = rest.index(part, position) + len(part)


@given(st.integers(0, 6), st.integers(0, 364 * 60), st.integers(0, 999), st.sampled_from(["身份证：", "", " ", "，"]))
def test_every_valid_identity_card_is_found(province, day, serial, before):
    from datetime import date, timedelta

    born = date(1945, 1, 1) + timedelta(days=day)
    number = f"{('11', '31', '44', '51', '65', '71', '82')[province]}0101{born:%Y%m%d}{serial:03}"
    number += identity_check_digit(number)
    assert mask(f"{before}{number}。", SETTINGS)[0] == f"{before}<|identity_card|>。"
    wrong = number[:17] + ("0" if number[17] != "0" else "1")
    assert "identity_card" not in mask(wrong, SETTINGS)[1]


@given(st.from_regex(r"\A1(3[0-9]|5[0-35-9]|8[0-9]|9[189])[0-9]{8}\Z"), st.sampled_from(["", "我是", "\n", "("]))
def test_every_mobile_number_is_found(number, before):
    if int(number) % (1 << 20):
        assert mask(f"{before}{number}，", SETTINGS)[0] == f"{before}<|mobile_number|>，"


@given(st.from_regex(r"\A(62[0-9]{14}|4[0-9]{14}|5[1-5][0-9]{13})\Z"))
def test_every_bank_card_is_found(start):
    number = next(f"{start}{digit}" for digit in range(10) if passes_luhn(f"{start}{digit}"))
    number_masked = mask(f"卡 {number}", SETTINGS)[0]
    assert number_masked in ("卡 <|bank_card|>", "卡 <|identity_card|>")


def test_planted_among_real_texts_they_alone_are_found(shared_data):
    """Precision and recall among versions, hashes, tables and code as people write them."""
    planted = [unmarked(marked) for texts in PERSONAL.values() for marked in texts]
    for path in sorted((shared_data / "pretrain").glob("*/*-000.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines()[:150]):
            own, _ = mask(orjson.loads(line)["target"], SETTINGS)
            lines = own.split("\n")
            text, expected = planted[number % len(planted)]
            other = IMPERSONAL[number % len(IMPERSONAL)]
            middle = len(lines) // 2
            whole = "\n".join([*lines[:middle], text, *lines[middle:], other])
            assert [whole[span.start : span.end] for span in find(whole, SETTINGS)] == expected


@pytest.mark.parametrize(
    "unit", ["1-", "1.", "a@", "1 ", ":1", "13812345678-", "(at)", "+1", "192.168.1.1-", "a@b.cc "]
)
def test_long_repetitions_take_no_longer_than_their_length(unit):
    start = time.process_time()
    mask(unit * 100_000, SETTINGS)
    assert time.process_time() - start < 30  # seconds; 2 where each of 100,000 is masked
