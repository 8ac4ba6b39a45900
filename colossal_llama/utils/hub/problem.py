"""Error of a hub that gives no answer now, where a copy in the cache may serve instead."""

from colossal_llama.utils.errors import UserError


class HubProblem(UserError):
    """A repository that cannot be looked up or downloaded now.

    Attributes:
        is_network: there is no way to the hub, or it does not answer as it should.
        is_final: a cached copy is no answer: the revision does not exist.
    """

    def __init__(self, problem: str, *, is_network: bool = False, is_final: bool = False):
        super().__init__(problem)
        self.is_network = is_network
        self.is_final = is_final
