"""Shard policy of plugin 3d without parallel dimensions: it leaves the model as it is.

ColossalAI's own policies know some architectures and some versions of transformers. Where nothing
is sharded none is needed.
"""

from typing import Any

from colossalai.shardformer.policies.base_policy import Policy
from torch import nn


class WholeModelPolicy(Policy):
    """Policy that replaces nothing."""

    def config_sanity_check(self) -> None:
        """Accepts every configuration."""

    def preprocess(self) -> nn.Module:
        """Returns the model."""
        return self.model

    def module_policy(self) -> dict[Any, Any]:
        """Describes no replacement."""
        return {}

    def postprocess(self) -> nn.Module:
        """Returns the model."""
        return self.model
