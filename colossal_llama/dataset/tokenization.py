"""Tokenizes checked records into segments that fit a row, with a target flag on every token.

Tokens are int32 whose bit 30 is the target flag, so that ids and labels are one array until they
are written:

    BOS  source…  target…  EOS          one document
     .   . . . .  T T T T   T           bit 30
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, EncodedBatch, EncodedConversation, Message
from colossal_llama.dataset.document_splitting import CutScores, cut_positions
from colossal_llama.dataset.long_conversations import Encode, truncated, windows
from colossal_llama.dataset.records import Conversation
from colossal_llama.dataset.template_renderer import ChatTemplateError, ChatTemplateLimitError
from colossal_llama.readers.fields import Document
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.utils.labels import IGNORED_LABEL

TARGET_BIT = np.int32(1 << 30)
ID_MASK = np.int32((1 << 30) - 1)

SEGMENT = np.dtype([("length_tokens", "<i4"), ("document", "<i4"), ("category", "<i4")])


@dataclass
class TokenizedBatch:
    """A batch of tokenized records.

    Attributes:
        tokens: int32 (tokens,), flagged ids of all segments, one after the other.
        segments: (segments,) of dtype SEGMENT: length, number of the document in the batch, number
            of its category.
        categories: names of the categories, by number.
        documents: number of records with at least one segment; `segments` numbers them from 0.
        statistics: by category name, counts of documents, characters, tokens in and out, targets,
            splits, of what was noticed when the records were checked, and by reason of what was cut
            (`cut_tokens.REASON`) and dropped (`dropped_documents.REASON`, `dropped_tokens.REASON`).
        refusals: reasons why records could not be tokenized, by number of the record in the batch;
            they are in no other count.
    """

    tokens: np.ndarray
    segments: np.ndarray
    categories: list[str]
    documents: int
    statistics: dict[str, Counter] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)


def labels_of(flagged: np.ndarray) -> np.ndarray:
    """Labels of flagged tokens: the id of a target, -100 elsewhere; int32, not shifted."""
    return np.where(flagged & TARGET_BIT, flagged & ID_MASK, np.int32(IGNORED_LABEL))


class _SegmentCollector:
    """Collects the segments of a batch and counts by category."""

    def __init__(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._segments: list[tuple[int, int, int]] = []
        self._category_numbers: dict[str, int] = {}
        self._documents = 0
        self.statistics: dict[str, Counter] = {}

    def counter(self, category: str) -> Counter:
        return self.statistics.setdefault(category, Counter())

    def add(self, category: str, segments: Sequence[np.ndarray]) -> None:
        """Adds a document's segments; their first tokens have no context and are no targets."""
        number = self._category_numbers.setdefault(category, len(self._category_numbers))
        for segment in segments:
            segment[0] &= ID_MASK
            self._segments.append((len(segment), self._documents, number))
        self._tokens += segments
        self._documents += 1

    def batch(self) -> TokenizedBatch:
        tokens = np.concatenate(self._tokens) if self._tokens else np.empty(0, np.int32)
        segments = np.array(self._segments, SEGMENT)
        return TokenizedBatch(tokens, segments, list(self._category_numbers), self._documents, self.statistics)


# ------------------------------------------------------------------------------------ pre-training


class DocumentTokenizer:
    """Tokenizes pre-training documents as BOS + source + target + EOS, split to fit rows.

    A tokenizer without a BOS token (Qwen's) belongs to a model that was trained without one: there
    a document begins with its text.
    """

    def __init__(
        self,
        encoder: BatchEncoder,
        bos_id: int | None,
        eos_id: int,
        cut_scores: CutScores,
        max_length: int,
        long_documents: Literal["split", "truncate"] = "split",
    ):
        self._encoder, self._cut_scores = encoder, cut_scores
        self._beginning, self._eos_id = [] if bos_id is None else [bos_id], eos_id
        self._max_length, self._long_documents = max_length, long_documents

    def tokenize(self, documents: Sequence[Document]) -> TokenizedBatch:
        """Tokenizes documents into segments."""
        collector = _SegmentCollector()
        tokens, ends, target_starts = self._flagged_tokens(documents)
        starts = np.concatenate([[0], ends[:-1]])
        for document, start, end, target_start in zip(
            documents, starts.tolist(), ends.tolist(), target_starts.tolist(), strict=True
        ):
            counter = collector.counter(document.category)
            counter["documents"] += 1
            counter.update(document.notes)
            counter["characters"] += len(document.source) + len(document.target)
            counter["tokens_in"] += end - start
            segments = [tokens[start:end]]
            if end - start > self._max_length:
                segments = self._fit(tokens[start:end], target_start - start, counter)
            collector.add(document.category, segments)
            counter["segments"] += len(segments)
        return _with_token_counts(collector.batch())

    def _flagged_tokens(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flagged tokens of all documents, the end of each, and the start of each target."""
        texts = [text for document in documents for text in (document.source, document.target)]
        beginnings = [flag for document in documents for flag in (True, not document.source)]
        ids, lengths = self._encoder.encode(texts, beginnings)
        source_lengths, target_lengths = lengths[0::2], lengths[1::2]
        control_tokens = len(self._beginning) + 1
        ends = np.cumsum(source_lengths + target_lengths + control_tokens)
        starts = ends - (source_lengths + target_lengths + control_tokens)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        is_text = np.ones(len(tokens), bool)
        is_text[ends - 1] = False
        tokens[ends - 1] = self._eos_id
        if self._beginning:
            is_text[starts] = False
            tokens[starts] = self._beginning
        tokens[is_text] = ids
        target_starts = starts + len(self._beginning) + source_lengths
        steps = np.zeros(len(tokens) + 1, np.int8)
        steps[target_starts] += 1
        steps[ends] -= 1
        tokens[np.cumsum(steps[:-1], dtype=np.int8) > 0] |= TARGET_BIT
        return tokens, ends, target_starts

    def _fit(self, tokens: np.ndarray, target_start: int, counter: Counter) -> list[np.ndarray]:
        """Splits or truncates a document that is longer than a row.

        A source that would fill more than half of the first row is cut at its beginning. So the
        first segment keeps the context nearest to the target, and every segment has targets.
        """
        first = len(self._beginning)
        source_length, target_length = target_start - first, len(tokens) - target_start
        kept_source = max(self._max_length - first - target_length, self._max_length // 2 - 1)
        if source_length > kept_source:
            counter["cut_tokens.source_too_long"] += source_length - kept_source
            counter["documents_cut.source_too_long"] += 1
            tokens = np.concatenate([tokens[:first], tokens[target_start - kept_source :]])
            target_start = first + kept_source
        cuts = cut_positions(tokens & ID_MASK, self._max_length, self._cut_scores, first_cut_after=target_start)
        if not cuts:
            return [tokens]
        if self._long_documents == "truncate":
            counter["cut_tokens.truncated"] += len(tokens) - cuts[0]
            counter["documents_cut.truncated"] += 1
            return [tokens[: cuts[0]]]
        counter["documents_split"] += 1
        return np.split(tokens, cuts)


# ------------------------------------------------------------------------------------- fine-tuning


class ConversationTokenizer:
    """Tokenizes conversations into segments: one each, or one for each window of a long one."""

    def __init__(
        self,
        template: ConversationTemplate | ChatTemplate,
        encoder: BatchEncoder,
        max_length: int,
        long_conversations: Literal["truncate", "window"] = "truncate",
    ):
        self._template, self._encoder = template, encoder
        self._max_length, self._long_conversations = max_length, long_conversations

    def tokenize(self, conversations: Sequence[Conversation]) -> TokenizedBatch:
        """Tokenizes conversations into segments."""
        collector = _SegmentCollector()
        listed = [conversation.messages for conversation in conversations]
        batch = self._template.encode_batch(listed, self._encoder)
        refusals = dict(batch.refusals)
        tokens = batch.ids | np.where(batch.target_mask(listed), TARGET_BIT, np.int32(0))
        for number, conversation in enumerate(conversations):
            if number in refusals:
                continue
            start, end = batch.range_of(number)
            counter = Counter(conversation.notes)
            counter["documents"] += 1
            counter["characters"] += sum(len(message.content) for message in conversation.messages)
            counter["tokens_in"] += end - start
            segments = [tokens[start:end]]
            try:
                if end - start > self._max_length:
                    segments = self._fit(conversation.messages, batch, number, counter)
            except ChatTemplateLimitError as error:
                error.conversation = number
                raise
            except ChatTemplateError as error:  # the template takes the whole and refuses a part of it
                refusals[number] = str(error)
                continue
            counter["segments"] += len(segments)
            collector.counter(conversation.category).update(counter)
            if segments:
                collector.add(conversation.category, segments)
        return replace(_with_token_counts(collector.batch()), refusals=refusals)

    def _fit(self, messages: Sequence[Message], batch: EncodedBatch, number: int, counter: Counter) -> list[np.ndarray]:
        """Truncates a conversation that is longer than a row, or divides it into windows."""
        start, end = batch.range_of(number)
        encode = self._template.subset_encoder(messages, batch, number)
        if self._long_conversations == "window":
            found = self._windows(messages, encode, end - start, batch.target_spans(number), counter)
        else:
            found = self._truncated(messages, encode, end - start, counter)
        return [_flagged(conversation) for conversation in found]

    def _truncated(
        self, messages: Sequence[Message], encode: Encode, length: int, counter: Counter
    ) -> list[EncodedConversation]:
        kept, left_out = truncated(messages, encode, self._max_length)
        if kept is None:
            return self._dropped(length, counter)
        counter["documents_cut.turns_beyond_max_length"] += 1
        counter["cut_turns.turns_beyond_max_length"] += left_out
        counter["cut_tokens.turns_beyond_max_length"] += length - len(kept.input_ids)
        return [kept]

    def _windows(
        self,
        messages: Sequence[Message],
        encode: Encode,
        length: int,
        spans: Sequence[tuple[int, int]],
        counter: Counter,
    ) -> list[EncodedConversation]:
        found, too_long = windows(messages, encode, self._max_length)
        if not found:
            return self._dropped(length, counter)
        cut = sum(spans[answer][1] - spans[answer][0] for answer in too_long)
        if too_long:
            counter["documents_cut.answer_too_long"] += 1
            counter["cut_answers.answer_too_long"] += len(too_long)
            counter["cut_tokens.answer_too_long"] += cut
        surplus = sum(len(window.input_ids) for window in found) + cut - length
        counter["repeated_tokens"] += max(surplus, 0)  # context and prefixes that are in several windows
        counter["cut_tokens.turns_without_a_fitting_answer"] += max(-surplus, 0)
        counter["documents_split"] += len(found) > 1
        return found

    def _dropped(self, length: int, counter: Counter) -> list[EncodedConversation]:
        counter["dropped_documents.no_answer_fits"] += 1
        counter["dropped_tokens.no_answer_fits"] += length
        return []


def _flagged(conversation: EncodedConversation) -> np.ndarray:
    tokens = np.array(conversation.input_ids, np.int32)
    for start, end in conversation.target_spans:
        tokens[start:end] |= TARGET_BIT
    return tokens


def _with_token_counts(samples: TokenizedBatch) -> TokenizedBatch:
    """Adds the numbers of output tokens and targets to the statistics."""
    ends = np.cumsum(samples.segments["length_tokens"], dtype=np.int64)
    targets = np.concatenate([[0], np.cumsum((samples.tokens & TARGET_BIT) != 0)])
    targets_of_segment = targets[ends] - targets[ends - samples.segments["length_tokens"]]
    for number, category in enumerate(samples.categories):
        chosen = samples.segments["category"] == number
        samples.statistics[category]["tokens_out"] += int(samples.segments["length_tokens"][chosen].sum())
        samples.statistics[category]["target_tokens"] += int(targets_of_segment[chosen].sum())
    return samples
