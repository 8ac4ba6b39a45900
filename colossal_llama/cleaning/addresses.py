"""E-mail and IP addresses in texts, told from version numbers, decorators and file names."""

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network

from colossal_llama.cleaning.surroundings import Span, context_before

# ------------------------------------------------------------------------------------------ e-mail

# Latin, Greek and Cyrillic letters: Chinese ones stand next to an address without a space.
_LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u052f"
_LOCAL_CHARACTERS = "".join(filter(re.compile(rf"[{_LETTERS}0-9._%+-]").match, map(chr, range(0x530))))
_LONGEST_LOCAL_PART = 64

_LABEL = rf"[{_LETTERS}0-9](?:[{_LETTERS}0-9-]{{0,62}})"
_DOMAIN = re.compile(rf"((?:{_LABEL}\.)+)(xn--[A-Za-z0-9-]{{2,59}}|[A-Za-z]{{2,24}})")

# Written so that programs do not find them: a (at) b [dot] com, a&#64;b.com, a at b dot com.
# Searched in lower case and with round brackets alone, which costs a third.
_HIDDEN_SIGNS = (b"(at)", b"( at )", b"(@)", b"&#64;", b"%40", b" dot ")
_SIMPLE = bytes.maketrans(b"ATDO[{<]}>", b"atdo((()))")
_HIDDEN_AT = re.compile(r" ?[\[({<] ?(?:[aA][tT]|@) ?[\])}>] ?|&#64;|%40| (?:at|AT) (?=[\w-]+ (?:dot|DOT) )")
_HIDDEN_DOT = r"(?:\.| ?[\[({<] ?(?:[dD][oO][tT]|\.) ?[\])}>] ?| (?:dot|DOT) )"
_HIDDEN_DOMAIN = re.compile(rf"((?:{_LABEL}{_HIDDEN_DOT})+)([A-Za-z]{{2,6}})(?![\w])")

# Endings of files and units of programs, which are no top-level domains.
_NAMES_OF_ENDINGS = (
    "png jpg jpeg gif svg webp bmp ico css scss less js mjs cjs ts jsx tsx json html htm xml yaml yml txt pdf doc "
    "docx xls xlsx exe dll class jar war java cpp hpp go rb php kt vue log cfg conf ini toml lock bat csv tsv sql "
    "bak tmp gz tar tgz zip whl deb rpm service socket timer target mount slice device scope path min"
)
_ENDINGS = frozenset(_NAMES_OF_ENDINGS.split())
_NOBODY = frozenset(("git", "hg", "svn"))
_OF_ALGORITHMS = frozenset(("openssh.com", "libssh.org"))  # RFC 4251: umac-128@openssh.com
_USER_OF_URL = re.compile(r"(?<!mailto:)//[A-Za-z0-9._~%:$&'()*+,;=!-]*\Z")


def email_addresses(text: str) -> Iterator[Span]:
    """Finds e-mail addresses, also those written against programs that search for them."""
    for sign in "@＠":
        position = text.find(sign)
        while position >= 0:
            span = _email_around(text, position, position + 1, _DOMAIN)
            if span is not None:
                yield span
            position = text.find(sign, position + 1)
    if _has_hidden_signs(text):
        for match in _HIDDEN_AT.finditer(text):
            span = _email_around(text, match.start(), match.end(), _HIDDEN_DOMAIN)
            if span is not None:
                yield span


def _has_hidden_signs(text: str) -> bool:
    simple = text.encode("ascii", "replace").translate(_SIMPLE)
    return any([sign in simple for sign in _HIDDEN_SIGNS])  # noqa: C419  # faster than a generator


def _email_around(text: str, at: int, after: int, domain_pattern: re.Pattern[str]) -> Span | None:
    """The address whose at sign is at `at`, and its domain at `after`; None where it is none."""
    domain = domain_pattern.match(text, after)
    if domain is None:
        return None
    before = text[max(0, at - _LONGEST_LOCAL_PART) : at]
    local = before[len(before.rstrip(_LOCAL_CHARACTERS)) :].lstrip(".%+-")
    start, end = at - len(local), domain.end()
    labels = re.findall(rf"[{_LETTERS}0-9-]+", domain[1])
    if (
        not local
        or domain[2].lower() in _ENDINGS
        or domain[0].lower() in _OF_ALGORITHMS
        or (len(labels) > 1 and all(label.isdigit() for label in labels))  # a version: name@1.2.beta
        or text.startswith("(", end)  # a call: q@k.transpose(
        or text.startswith((":/", ":~"), end)  # a place on a host: user@host.net:/home
        or (local in _NOBODY and text.startswith((":", "/"), end))
        or _USER_OF_URL.search(text[max(0, start - 64) : start])
    ):
        return None
    return Span("email", start, end)


# --------------------------------------------------------------------------------------------- IP

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(
    rf"(?<![0-9A-Za-z_])(?<![0-9A-Za-z]\.)(?<![A-Za-z]-)(?:{_OCTET}\.){{3}}{_OCTET}"
    r"(?![0-9A-Za-z_]|\.[0-9A-Za-z]|-[A-Za-z])"
)
# Version and section numbers have small parts: an address of such parts needs a word that says so.
_SMALL_OCTETS = 64  # four of them: one address in 256
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:versions?|ver|release|rev(?:ision)?|build|sections?|sec|chapter|appendix|clause|oid|rfc|draft|table|figure)"
    r"|版本号?|版|升级[到至]|固件|驱动|章|节|第|图|表|§|\bv\.?|[A-Za-z]/)[\s:：=（(\"'“`*]*[vV]?\.?\Z",
    re.IGNORECASE | re.ASCII,
)
# Programs, whose versions begin with small numbers; hosts are named after some of them, too.
_LARGEST_MAJOR_VERSION = 160
_PROGRAM_BEFORE = re.compile(
    r"(?:\b(?:chrom(?:e|ium)|firefox|safari|edge|opera|android|ios|macos|windows|kernel|java|jdk|jre|python|php|mysql"
    r"|oracle|postgres(?:ql)?|redis|nginx|tomcat|openssl|driver|firmware|plug-?in|package|library|module|app|software"
    r"|patch|update|upgrade[ds]?|player|engine|cuda)|更新|补丁)[ /(:]{0,2}\Z"
    r"|\b(?:upgrad(?:e|ed|ing)|update[ds]?|updating|migrat(?:e|ed|ing)) (?:from|to) \Z",
    re.IGNORECASE | re.ASCII,
)
_ADDRESS_BEFORE = re.compile(
    r"\b(?:ips?|ipv4|addr(?:ess(?:es)?)?|hosts?|hostname|server|dns|nameserver|ping|gateway|router|nodes?|client|peer"
    r"|inet|src|dst|source|destination|bind)\b|\s-[a-zA-Z] ?\Z|网关|地址|主机|服务器|节点|客户端|路由器|来自|//\Z|@\Z",
    re.IGNORECASE | re.ASCII,
)
_PORT_OR_PREFIX = re.compile(r":[0-9]{2,5}(?![0-9.:])|/[0-9]{1,2}(?![0-9.])| port\b")
_HEADING_BEFORE = re.compile(r"(?:\A|\n)[ \t#*>-]*\Z")
_TITLE_AFTER = re.compile(r"\.?[ \t]+[A-Z\u4e00-\u9fff]")

_IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_CHARACTERS = "0123456789abcdefABCDEF:."
_LONGEST_IPV6 = 45
# Global unicast, unique local and link-local addresses. Others are no host's, or words of programs.
_IPV6_NETWORKS = tuple(map(IPv6Network, ("2000::/3", "fc00::/7", "fe80::/10")))


def ipv4_addresses(text: str, start: int, end: int, public_only: bool) -> Iterator[Span]:
    """Finds IPv4 addresses within a part of a text that has at least three dots."""
    for match in _IPV4.finditer(text, start, min(len(text), end + 2)):
        if _is_ipv4_of_host(text, match, public_only):
            yield Span("ip", match.start(), match.end())


def _is_ipv4_of_host(text: str, match: re.Match[str], public_only: bool) -> bool:
    address = IPv4Address(match[0])
    octets = address.packed
    follows = _PORT_OR_PREFIX.match(text, match.end())
    is_network = octets[3] == 0 and (octets[2] == 0 or (follows is not None and follows[0].startswith("/")))
    if octets[0] in (0, 127) or octets[0] >= 224 or is_network or (public_only and not address.is_global):
        return False
    before = context_before(text, match.start())
    if _VERSION_BEFORE.search(before) and not before.endswith("//"):
        return False
    if octets[0] < _LARGEST_MAJOR_VERSION and _PROGRAM_BEFORE.search(before):
        return False
    if max(octets) >= _SMALL_OCTETS:
        return True
    if octets[0] == 10:
        line = text[max(0, match.start() - 16) : match.start()]
        return not (_HEADING_BEFORE.search(line) and _TITLE_AFTER.match(text, match.end()))
    return follows is not None or _ADDRESS_BEFORE.search(before) is not None


def ipv6_addresses(text: str, public_only: bool) -> Iterator[Span]:
    """Finds IPv6 addresses of hosts, in any of their forms."""
    searched = 0
    for match in _IPV6_SIGN.finditer(text):
        if match.start() < searched:
            continue
        before = text[max(searched, match.start() - _LONGEST_IPV6) : match.start()]
        start = match.start() - len(before) + len(before.rstrip(_IPV6_CHARACTERS))
        after = text[match.end() : match.end() + _LONGEST_IPV6]
        searched = match.end() + len(after) - len(after.lstrip(_IPV6_CHARACTERS))
        written = text[start:searched].rstrip(".:")  # with :: at its end it is a network, or a year in reST
        neighbours = text[max(0, start - 1) : start] + text[searched : searched + 1]
        if not re.search(r"[0-9A-Za-z_]", neighbours) and _is_ipv6_of_host(written, public_only):
            yield Span("ip", start, start + len(written))


def _is_ipv6_of_host(written: str, public_only: bool) -> bool:
    try:
        address = IPv6Address(written)
    except AddressValueError:
        return False
    return any(address in network for network in _IPV6_NETWORKS) and (address.is_global or not public_only)
