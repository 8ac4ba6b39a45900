"""Opens the tokenizer of a preparation: the pipeline's only module that imports transformers."""

from functools import cached_property
from pathlib import Path

from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.document_splitting import CutScores
from colossal_llama.dataset.prepare.arguments import ConversationRowArguments, DocumentRowArguments, PrepareArguments
from colossal_llama.dataset.records import CONVERSATION_RULES
from colossal_llama.dataset.system_prompt import DEFAULT_SYSTEM
from colossal_llama.dataset.tokenization import ConversationTokenizer, DocumentTokenizer
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.tokenizer.token_bytes import token_bytes
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.fetch import option_directory
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import ModelName


class OpenTokenizer:
    """A tokenizer, and what is computed from its vocabulary on demand."""

    def __init__(self, source: Path | ModelName):
        """Opens a tokenizer directory, or a repository's, which is downloaded.

        Raises:
            UserError: see `load_tokenizer` and `fetch`.
        """
        self.directory = option_directory("--tokenizer_dir", source, Needed.TOKENIZER)
        self.tokenizer = load_tokenizer(self.directory)
        serialized = self.tokenizer.backend_tokenizer.to_str()
        self.fingerprint = tokenizer_fingerprint(self.tokenizer, serialized)
        self.text_encoder = TextEncoder(self.tokenizer, serialized)

    @cached_property
    def _definition(self) -> dict:
        return self.text_encoder.definition()

    @cached_property
    def encoder(self) -> BatchEncoder:
        """Encoder of batches of texts."""
        return BatchEncoder(self.text_encoder, self._definition)

    @cached_property
    def cut_scores(self) -> CutScores:
        """Scores of the positions where long documents are cut."""
        return CutScores(token_bytes(self._definition, len(self.tokenizer)))


def record_tokenizer(
    arguments: PrepareArguments, opened: OpenTokenizer, date: str
) -> tuple[DocumentTokenizer | ConversationTokenizer, dict]:
    """Builds the tokenizer of records, and the facts that identify its format.

    Args:
        arguments: of the preparation.
        opened: the tokenizer.
        date: the day that a chat template is told, YYYY-MM-DD.
    """
    tokenizer, rows = opened.tokenizer, arguments.rows
    facts = {"tokenizer_fingerprint": opened.fingerprint, "vocab_size": len(tokenizer)}
    if isinstance(rows, ConversationRowArguments):
        template = _template(rows, opened, date)
        facts |= {"template": template.describe(), "conversation_rules": CONVERSATION_RULES}
        return ConversationTokenizer(template, opened.encoder, rows.max_length, rows.long_conversations), facts
    assert isinstance(rows, DocumentRowArguments)
    bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    facts |= {"bos_id": bos_id, "eos_id": eos_id}
    samples = DocumentTokenizer(opened.encoder, bos_id, eos_id, opened.cut_scores, rows.max_length, rows.long_documents)
    return samples, facts


def _template(rows: ConversationRowArguments, opened: OpenTokenizer, date: str) -> ConversationTemplate | ChatTemplate:
    tokenizer, encoder, system = opened.tokenizer, opened.text_encoder, rows.system_prompt
    template: ConversationTemplate | ChatTemplate
    if rows.chat_template is not None:
        template = ChatTemplate.open(tokenizer, rows.chat_template, date, encoder, system)
    else:
        own = DEFAULT_SYSTEM if system is None else system
        template = ConversationTemplate.for_llama(tokenizer, rows.llama_version, encoder, own)
    if system and (length := len(template.prompt_ids([Message("human", "?")]))) >= rows.max_length:
        raise UserError(
            f"--system: a conversation begins with {length:,} tokens, so that --max_length {rows.max_length:,} leaves "
            "no room for an answer: shorten the system prompt"
        )
    return template
