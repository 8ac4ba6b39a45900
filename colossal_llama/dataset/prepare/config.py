"""What a preparation is asked to do, and which of it decides the bytes that come out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["pretrain", "sft"]


@dataclass(frozen=True)
class Settings:
    """The arguments of a prepare script, checked. Lengths are in tokens."""

    kind: Kind
    data_input_dirs: tuple[Path, ...]
    tokenizer_dir: Path
    output_dir: Path
    max_length: int = 4096
    num_bins: int = 10
    seed: int = 42
    splicing: Literal["best_fit", "greedy", "none"] = "best_fit"
    long_documents: Literal["split", "truncate"] = "split"
    llama_version: int = 3
    chat_template: str | None = None
    long_conversations: Literal["truncate", "window"] = "truncate"
    on_bad_record: Literal["stop", "skip"] = "stop"
    limit: int | None = None
    num_workers: int = 1
    keep_cache: bool = False
    overwrite: bool = False
    num_shards: int = 1
    shard_index: int | None = None

    def deciding(self) -> dict:
        """The settings that decide the rows: not the paths, the workers or the shards. A run goes on only with the same."""
        common = {
            "kind": self.kind,
            "max_length": self.max_length,
            "num_spliced_dataset_bins": self.num_bins,
            "seed": self.seed,
            "on_bad_record": self.on_bad_record,
            "limit": self.limit,
        }
        if self.kind == "pretrain":
            return {**common, "splicing": self.splicing, "long_documents": self.long_documents}
        return {**common, "long_conversations": self.long_conversations}
