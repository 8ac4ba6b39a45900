"""Opens the tokenizer of a preparation. The only module of the pipeline that may need transformers: workers do without."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate
from colossal_llama.dataset.document_splitting import CutRanks
from colossal_llama.dataset.prepare.config import Settings
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.tokenizer.batch_encoder import BulkEncoder
from colossal_llama.tokenizer.direct_loading import DirectTokenizer
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_encoding_tokenizer, load_tokenizer, tokenizer_fingerprint
from colossal_llama.tokenizer.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class OpenTokenizer:
    """A tokenizer with what is computed from its vocabulary when it is needed."""

    def __init__(self, directory: Path):
        """Opens a tokenizer directory.

        Raises:
            UserError: see `load_tokenizer`.
        """
        self._directory = directory
        self.for_encoding = load_encoding_tokenizer(directory)
        serialized = self.for_encoding.backend_tokenizer.to_str()
        self.fingerprint = tokenizer_fingerprint(self.for_encoding, serialized)
        self.text_encoder = TextEncoder(self.for_encoding, serialized)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer of transformers, with all that it can do, for 1 s more."""
        if isinstance(self.for_encoding, DirectTokenizer):
            return load_tokenizer(self._directory)
        return self.for_encoding

    @cached_property
    def _definition(self) -> dict:
        return self.text_encoder.definition()

    @cached_property
    def encoder(self) -> BulkEncoder:
        """Encodes many texts."""
        return BulkEncoder(self.text_encoder, self._definition)

    @cached_property
    def ranks(self) -> CutRanks:
        """Tells where long documents are cut."""
        return CutRanks(token_bytes(self._definition, len(self.for_encoding)))


def sample_tokenizer(
    settings: Settings, opened: OpenTokenizer
) -> tuple[DocumentTokenizer | ConversationTokenizer, dict]:
    """What turns records into samples, and the facts by which its format is known."""
    tokenizer = opened.for_encoding
    facts = {"tokenizer_fingerprint": opened.fingerprint, "vocab_size": len(tokenizer)}
    if settings.kind == "sft":
        template = _template(settings, opened)
        facts["template"] = template.describe()
        samples = ConversationTokenizer(template, opened.encoder, settings.max_length, settings.long_conversations)
        return samples, facts
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    facts |= {"bos_id": bos_id, "eos_id": eos_id}
    samples = DocumentTokenizer(
        opened.encoder, bos_id, eos_id, opened.ranks, settings.max_length, settings.long_documents
    )
    return samples, facts


def _template(settings: Settings, opened: OpenTokenizer) -> ConversationTemplate | ChatTemplate:
    if settings.chat_template is None:
        return ConversationTemplate.for_llama(opened.for_encoding, settings.llama_version, opened.text_encoder)
    return ChatTemplate.open(opened.tokenizer, settings.chat_template, opened.text_encoder)
