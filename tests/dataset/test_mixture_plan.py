"""The mixture: what the file says, tokens by bucket, and documents chosen exactly."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.mixture.amounts import parse_epochs, parse_share, parse_tokens
from colossal_llama.dataset.mixture.mixture_file import Amount, Mixture, read_mixture
from colossal_llama.dataset.mixture.plan_record import TOLERATED_SHARE
from colossal_llama.dataset.mixture.selection import SEARCHED_DOCUMENTS, choose_documents
from colossal_llama.dataset.mixture.targets import mixture_targets
from colossal_llama.dataset.prepare.arguments import MixtureArguments
from colossal_llama.dataset.prepare.buckets import Segments
from colossal_llama.dataset.prepare.mixture_plan import bucket_tokens, plan_mixture
from colossal_llama.utils.errors import UserError

FOUR = Fraction(4)


def written(directory, text: str, name: str = "mixture.yaml"):
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(directory, text: str, name: str = "mixture.yaml") -> str:
    with pytest.raises(UserError) as refused:
        read_mixture(written(directory, text, name))
    return str(refused.value)


# ---------------------------------------------------------------------------------------- amounts


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1.5B", 1_500_000_000),
        ("300M", 300_000_000),
        ("20k", 20_000),
        ("1e9", 10**9),
        ("1_000", 1000),
        ("0.5 T", 5 * 10**11),
    ],
)
def test_numbers_of_tokens_are_read_as_people_write_them(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text", ["", "B", "-1", "1,5B", "1.5", "1e99", "nan", "inf", "1__", "9" * 50, "2e9B9", "25%", "１２", "0x10"]
)
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ValueError, match="token"):
        parse_tokens(text)


def test_shares_and_epochs_are_exact():
    assert parse_share("25%") == parse_share("0.25") == parse_share("1/4") == Fraction(1, 4)
    assert parse_share("33.3 %") == Fraction(333, 1000)
    assert parse_epochs("1.5") == Fraction(3, 2)
    for text in ("25", "-1%", "101%", "1/0", "much", "1e-3", ""):
        with pytest.raises(ValueError, match=r"share|all tokens"):
            parse_share(text)
    with pytest.raises(ValueError, match="write 25%"):
        parse_share("25")


# ------------------------------------------------------------------------------------------- file


def test_yaml_and_json_say_the_same(tmp_path):
    yaml = """
        categories:
          no: {group: informative}
          2024: {share: 0.2, late: 20%}
          问答: {epochs: 2}
        rest:
        late_from: 80%
    """
    entries = {"no": {"group": "informative"}, "2024": {"share": 0.2, "late": "20%"}, "问答": {"epochs": 2}, "*": None}
    from_json = read_mixture(written(tmp_path, json.dumps({"categories": entries, "late_from": "0.8"}), "mixture.json"))
    assert read_mixture(written(tmp_path, yaml)) == from_json
    assert from_json.content() == {
        "categories": {
            "no": {"group": "informative"},
            "2024": {"share": "20%", "late": "20%"},
            "问答": {"epochs": "2"},
            "*": {},
        },
        "late_from": "80%",
    }


def test_entries_of_one_mapping_are_merged_into_others(tmp_path):
    mixture = read_mixture(
        written(
            tmp_path,
            """
            categories:
              a: &twice {group: functional, epochs: 2}
              b: {<<: *twice, epochs: 3}
              c: {<<: [{late: 5%}, *twice]}
              "<<": {}
            """,
        )
    )
    assert mixture.content()["categories"] == {
        "a": {"epochs": "2", "group": "functional"},
        "b": {"epochs": "3", "group": "functional"},
        "c": {"epochs": "2", "late": "5%", "group": "functional"},
        "<<": {},
    }
    assert "needs a mapping" in problems_of(tmp_path, "categories:\n  a: {<<: 3}")
    assert "write '*' with its quotes" in problems_of(tmp_path, "categories:\n  *: {}")


def test_everything_that_is_wrong_in_a_file_is_said_at_once(tmp_path):
    said = problems_of(
        tmp_path,
        """
        categories:
          a: {share: 25, tokns: 3M}
          b: {tokens: 1.5, epochs: 2}
          c: {late: 10%}
          d: 25%
        group: {}
        """,
    )
    for part in (
        "'25' is more than all tokens: write 25%",
        "'tokns' is no key of a mixture: did you mean 'tokens'?",
        "'1.5' is not a whole number of tokens",
        "category 'b' has tokens and epochs: keep one",
        "category 'c' has late",
        "category 'd': '25%' is no mapping: write {share: 25%}",
        "'group' is no key of a mixture: did you mean 'groups'?",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no mapping"),
        ("- a\n- b", "holds no mapping"),
        ("categories: [a", "cannot be read"),
        ("categories:\n  a: {share: 10%}\n  a: {share: 90%}", "the key 'a' is there twice"),
        ("categories:\n  ? [a]\n  : {}", "a key is no text"),
        ("categories: {a: {share: 60%}, b: {share: 50%}}", "add up to 110%: give less"),
        ("categories: {a: {share: 60%}, b: {share: 30%}}", "add up to 90%, not 100%"),
        ("categories: {a: {share: 60%}, b: {share: 40%}, c: {}}", "nothing is left for the categories"),
        (
            "categories: {a: {share: 60%, late: 70%}, b: {share: 40%}}",
            "shares of the last bucket (late) add up to 110%",
        ),
        ("categories: {a: {group: x, share: 10%}, b: {}}\ngroups: {x: {share: 20%}}", "both have an amount"),
        ("categories: {a: {group: replay}}\ngroups: {repaly: {share: 20%}}", "did you mean 'replay'?"),
        ("categories: {'*': {}}\nrest: {}", "are the same"),
        ("categories: {a: {}}\nlate_from: 50%", "late_from has no effect"),
        ("categories: {a: {share: 1%, late: 2%}, b: {}}\nlate_from: 100%", "between 0% and 100%"),
        ("categories: {}", "names no category"),
        ("a: {share: 25%}\nb: {}", "put the categories below a line 'categories:'"),
        ("categories: &a [*a]", "cannot be read|is no mapping"),
        ("[" * 5000, "cannot be read"),
        ("categories: {a: {share: {b: 1}}}", "share is no text"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path, text, said):
    assert any(part in problems_of(tmp_path, text) for part in said.split("|")), problems_of(tmp_path, text)


def test_a_file_that_is_no_text_or_twice_the_same_in_json_is_refused(tmp_path):
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_mixture(tmp_path / "m.yaml")
    assert "is there twice" in problems_of(tmp_path, '{"categories": {"a": {}, "a": {}}}', "m.json")
    assert "cannot be read" in problems_of(tmp_path, "{", "m.JSON")


# ---------------------------------------------------------------------------------------- targets


def targets(text_of_categories: dict, available: dict, bins: int = 4, total: int | None = None, **more):
    amounts = {name: Amount(**values) for name, values in text_of_categories.items()}
    return mixture_targets(Mixture(amounts, **more), available, bins, total, FOUR)


def test_a_replay_share_is_one_line_and_the_others_are_taken_whole():
    found = targets({"english": {"share": Fraction(1, 4)}, "*": {}}, {"articles": 500, "english": 900, "poems": 100})
    assert found.tokens == [500, 200, 100]
    assert np.allclose(found.bucket_shares, np.array([[0.625], [0.25], [0.125]]))


def test_tokens_epochs_and_shares_go_together():
    asked = {"a": {"tokens": 300}, "b": {"epochs": Fraction(3)}, "c": {"share": Fraction(1, 2)}, "d": {}}
    available = {"a": 400, "b": 100, "c": 1000, "d": 400}
    assert targets(asked, available).tokens == [300, 300, 1000, 400]
    assert targets(asked, available, total=1600).tokens == [300, 300, 800, 200]
    assert targets({**asked, "b": {"epochs": Fraction(0)}}, available, total=1600).tokens == [300, 0, 800, 500]


def test_shares_alone_take_as_much_as_there_is_without_repeating():
    found = targets({"a": {"share": Fraction(3, 4)}, "b": {"share": Fraction(1, 4)}}, {"a": 1000, "b": 200})
    assert found.tokens == [600, 200]
    assert "'b' is used up first" in found.decided_by


def test_a_group_shares_its_amount_in_proportion():
    mixture = Mixture(
        {"a": Amount(), "b": Amount(), "c": Amount()},
        {"a": "replay", "b": "replay"},
        {"replay": Amount(share=Fraction(1, 2))},
    )
    assert mixture_targets(mixture, {"a": 300, "b": 100, "c": 200}, 3, None, FOUR).tokens == [150, 50, 200]


def test_late_shares_change_from_the_first_bucket_to_the_last():
    asked = {"qa": {"share": Fraction(0), "late": Fraction(1, 2)}, "rest": {}}
    available = {"qa": 1000, "rest": 750}
    linear = targets(asked, available, bins=3)
    assert linear.tokens == [250, 750]
    assert np.allclose(linear.bucket_shares, [[0, 0.25, 0.5], [1, 0.75, 0.5]])
    step = targets(asked, available, bins=4, late_from=Fraction(3, 4))
    assert np.allclose(step.bucket_shares[0], [0, 0, 0, 0.5])
    of_epochs = targets(
        {"qa": {"epochs": Fraction(1), "late": Fraction(3, 10)}, "rest": {}}, {"qa": 150, "rest": 850}, 5
    )
    assert np.allclose(of_epochs.bucket_shares[0], [0, 0.075, 0.15, 0.225, 0.3])
    assert targets(asked, available, bins=1).tokens == [250, 750]


@pytest.mark.parametrize(
    ("asked", "available", "options", "said"),
    [
        ({"artikles": {}}, {"articles": 9}, {}, "no usable document of 'artikles': did you mean 'articles'?"),
        ({"a": {}}, {"a": 9, "b": 9}, {}, "does not name 'b'"),
        ({"a": {}, "*": {}}, {"a": 9}, {}, "'*' stands for no category"),
        ({"a": {"epochs": Fraction(5)}}, {"a": 9}, {}, "--max_repeats 4 allows"),
        ({"a": {"epochs": Fraction(5)}}, {"a": 9}, {}, "give --max_repeats 5"),
        ({"a": {"share": Fraction(1, 4)}, "b": {}}, {"a": 9, "b": 9}, {"total": 100}, "(--total_tokens: 48 at most)"),
        ({"a": {}, "b": {"share": Fraction(9, 10)}}, {"a": 90, "b": 90}, {}, "b: 810 tokens of 90, 9 epochs"),
        ({"a": {"tokens": 60}, "b": {"share": Fraction(1, 2)}}, {"a": 90, "b": 90}, {"total": 100}, "add up to 110%"),
        ({"a": {"tokens": 40}, "b": {"share": Fraction(1, 2)}}, {"a": 90, "b": 90}, {"total": 100}, "90%"),
        ({"a": {"tokens": 100}, "b": {}}, {"a": 90, "b": 90}, {"total": 100}, "leave nothing for the other categories"),
        ({"a": {"epochs": Fraction(0)}}, {"a": 90}, {}, "add up to 0%"),
        ({"a": {"epochs": Fraction(1), "late": Fraction(1, 2)}, "b": {}}, {"a": 10, "b": 90}, {}, "at most 20%"),
        (
            {"a": {"share": Fraction(0), "late": Fraction(1, 2)}, "b": {"epochs": Fraction(1)}},
            {"a": 90, "b": 90},
            {},
            "another must give way",
        ),
        (
            {"a": {"share": Fraction(0), "late": Fraction(1, 2)}, "b": {}},
            {"a": 90, "b": 90},
            {"late_from": Fraction(9, 10)},
            "more --num_spliced_dataset_bins",
        ),
    ],
)
def test_a_mixture_that_does_not_fit_the_data_is_refused(asked, available, options, said):
    with pytest.raises(UserError) as refused:
        targets(asked, available, **options)
    assert said in str(refused.value)


# ------------------------------------------------------------------------------------- selection


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    bucket_tokens=st.lists(st.integers(0, 900), min_size=1, max_size=8),
    seed=st.integers(0, 2**63 - 1),
)
@example(lengths=[5] * 20, bucket_tokens=[70, 70, 60], seed=0)
@settings(max_examples=400, deadline=None)
def test_no_document_is_twice_before_its_epoch_is_through(lengths, bucket_tokens, seed):
    lengths, ends = np.array(lengths), np.cumsum(bucket_tokens)
    chosen = choose_documents(lengths, ends, seed, "poems")
    count = len(lengths)
    for start in range(0, len(chosen.documents), count):
        epoch = chosen.documents[start : start + count]
        assert len(set(epoch.tolist())) == len(epoch)
    assert chosen.bucket_counts.sum() == len(chosen.documents)
    reached = np.cumsum(lengths[chosen.documents])
    borders = np.cumsum(chosen.bucket_counts)
    errors = np.array([reached[border - 1] if border else 0 for border in borders]) - ends
    assert np.abs(errors).max() <= lengths.max() / 2
    again = choose_documents(lengths, ends, seed, "poems")
    assert np.array_equal(again.documents, chosen.documents)


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), seed=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_a_bucket_holds_no_document_twice_where_it_has_room_for_others(counts, seed):
    lengths = np.full(30, 7)
    chosen = choose_documents(lengths, np.cumsum(counts) * 7, seed, "a")
    for bucket in np.split(chosen.documents, np.cumsum(chosen.bucket_counts)[:-1]):
        assert len(set(bucket.tolist())) == len(bucket) <= 30


@given(
    lengths=st.lists(st.integers(1, 20), min_size=5, max_size=40),
    parts=st.lists(st.floats(0.3, 0.99), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_the_search_for_the_last_document_brings_none_twice(lengths, parts, seed):
    lengths = np.array(lengths)
    room = lengths.sum() - 2 * lengths.max()
    assume(room > 0)
    ends = np.cumsum([int(part * room) for part in parts])
    chosen = choose_documents(lengths, ends, seed, "a")
    for bucket in np.split(chosen.documents, np.cumsum(chosen.bucket_counts)[:-1]):
        assert len(set(bucket.tolist())) == len(bucket)


def test_another_document_takes_the_place_of_the_last_where_none_is_short_enough():
    lengths = np.random.default_rng(1).integers(100, 356, 4000)
    ends = np.arange(1, 301) * 1000
    chosen = choose_documents(lengths, ends, 1, "a")
    reached = np.cumsum(lengths[chosen.documents])[np.cumsum(chosen.bucket_counts) - 1]
    assert np.abs(reached - ends).mean() <= 6


def test_a_bucket_of_more_than_an_epoch_holds_documents_as_seldom_as_possible():
    chosen = choose_documents(np.full(10, 3), np.array([12, 87]), 1, "a")  # 4 documents, then 25
    times = np.bincount(chosen.documents[4:], minlength=10)
    assert chosen.bucket_counts.tolist() == [4, 25]
    assert times.max() - times.min() <= 1


def test_orders_differ_by_seed_category_and_epoch():
    lengths, ends = np.full(50, 2), np.array([200])
    by = {key: choose_documents(lengths, ends, *key).documents for key in [(1, "a"), (2, "a"), (1, "b")]}
    orders = [part.tolist() for documents in by.values() for part in np.split(documents, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_buckets_are_met_within_a_few_tokens_where_there_are_many_documents():
    lengths = np.random.default_rng(3).integers(20, 2000, 20_000)
    ends = np.linspace(0, lengths.sum() * 1.7, 11).astype(np.int64)[1:]
    chosen = choose_documents(lengths, ends, 3, "a")
    reached = np.cumsum(lengths[chosen.documents])[np.cumsum(chosen.bucket_counts) - 1]
    assert np.abs(reached - ends).max() <= 2000 / SEARCHED_DOCUMENTS * 8


# ------------------------------------------------------------------------------- plan, exactness


@st.composite
def corpora(draw):
    """Segments of random documents of some categories, and a mixture that fits them."""
    names = [f"c{number}" for number in range(draw(st.integers(1, 4)))]
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    documents = draw(st.integers(len(names), 300))
    category = np.concatenate([np.arange(len(names)), generator.integers(0, len(names), documents - len(names))])
    pieces = generator.integers(1, draw(st.integers(2, 4)), documents)
    lengths = generator.integers(1, draw(st.integers(2, 200)), pieces.sum()).astype(np.int32)
    segments = Segments(
        lengths,
        np.repeat(np.arange(documents), pieces).astype(np.int32),
        np.repeat(category, pieces).astype(np.int32),
        np.array([0, lengths.sum()]),
    )
    weights = generator.integers(1, 20, len(names))
    shares = [Fraction(int(weight), int(weights.sum())) for weight in weights]
    open_one = draw(st.booleans()) and len(names) > 1
    amounts = {name: Amount(share=share) for name, share in zip(names, shares, strict=True)}
    if open_one:
        amounts[names[-1]] = Amount()
    late = draw(st.booleans()) and len(names) > 1
    if late:
        amounts[names[0]] = Amount(share=shares[0], late=Fraction(0))
        amounts[names[1]] = (
            amounts[names[1]] if open_one and len(names) == 2 else Amount(share=shares[1], late=shares[0] + shares[1])
        )
    total = draw(st.none() | st.integers(1, 3 * int(lengths.sum())))
    return names, segments, Mixture(amounts), total, draw(st.integers(1, 12)), seed


@given(corpora())
@settings(max_examples=300, deadline=None)
def test_every_bucket_has_the_mixture_or_the_reason_is_said(corpus):
    names, segments, mixture, total, bins, seed = corpus
    arguments = MixtureArguments(mixture=mixture, total_tokens=total, max_repeats=Fraction(10**6))
    try:
        plan, record = plan_mixture(segments, names, bins, seed, arguments)
    except UserError:  # fewer tokens than those of a document
        assume(total is None or total > 400 * len(names))
        raise
    reached = bucket_tokens(plan, len(names))
    firsts = np.flatnonzero(segments.is_first)
    document_tokens = np.add.reduceat(segments.lengths, firsts)
    longest = [document_tokens[segments.categories[firsts] == number].max() for number in range(len(names))]
    wanted = mixture_targets(
        mixture, {name: record["categories"][name]["available_tokens"] for name in names}, bins, total, Fraction(10**6)
    )
    assert total is None or sum(wanted.tokens) == total
    said = " ".join(record["deviations"])
    for number, name in enumerate(names):
        asked = np.diff(wanted.bucket_ends(number), prepend=0)
        assert np.abs(reached[number] - asked).max() <= longest[number]
        assert abs(reached[number].sum() - wanted.tokens[number]) <= longest[number] / 2
        shares = reached[number] / np.maximum(reached.sum(axis=0), 1)
        off = np.abs(shares - wanted.bucket_shares[number])
        rounding = 1 / max(sum(wanted.tokens) / bins, 1)
        if off.max() > TOLERATED_SHARE + 2 * rounding:
            assert f"{name}: up to" in said
    sizes = np.array([*reached.sum(axis=0), reached.sum()])
    ends = np.stack([wanted.bucket_ends(number) for number in range(len(names))]).sum(axis=0)
    asked_sizes = np.array([*np.diff(ends, prepend=0), ends[-1]])
    if (np.abs(sizes - asked_sizes) > TOLERATED_SHARE * asked_sizes).any():
        assert "tokens of all categories" in said
    # A document has all of its segments in the part, and the plan those of the input alone.
    starts = segments.starts
    for bucket in range(bins):
        part = slice(*plan.part_starts[bucket : bucket + 2])
        found = np.searchsorted(starts, plan.starts[part])
        assert np.array_equal(starts[found], plan.starts[part])
        assert np.array_equal(segments.lengths[found], plan.lengths[part])
        times = np.bincount(found, minlength=len(starts))
        per_document = [set(times[segments.documents == document]) for document in set(segments.documents[found])]
        assert all(len(counts) == 1 for counts in per_document)


def test_deviations_of_groups_are_said_where_each_category_has_its_share():
    """Twenty categories that are each a little above their share are 0.5 points together."""
    names = [f"c{number:02d}" for number in range(20)] + ["others"]
    lengths = np.array([5] * 20 * 30 + [1] * 60_000, np.int32)
    numbers = np.array([number for number in range(20) for _ in range(30)] + [20] * 60_000, np.int32)
    segments = Segments(lengths, np.arange(len(lengths), dtype=np.int32), numbers, np.array([0, lengths.sum()]))
    group_of = dict.fromkeys(names[:20], "replay")
    by_group = Mixture({**dict.fromkeys(names, Amount())}, group_of, {"replay": Amount(share=Fraction(53, 1000))})
    by_rest = Mixture({"others": Amount(), "*": Amount(share=Fraction(53, 1000))})
    for mixture, name in ((by_group, "group replay"), (by_rest, "category '*'")):
        arguments = MixtureArguments(mixture=mixture, total_tokens=10_000)
        _, record = plan_mixture(segments, names, 2, 1, arguments)
        assert not any(line.startswith("c0") for line in record["deviations"])
        assert any(line.startswith(f"{name}: up to") for line in record["deviations"]), record["deviations"]


def test_a_mixture_of_less_than_a_document_is_refused():
    segments = Segments(np.array([9], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([0, 9]))
    arguments = MixtureArguments(mixture=Mixture({"a": Amount(tokens=3)}))
    with pytest.raises(UserError, match="of 3 tokens no category gets"):
        plan_mixture(segments, ["a"], 2, 1, arguments)
