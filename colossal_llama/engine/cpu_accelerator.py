"""ColossalAI on a host without GPU: an accelerator for the CPU, and two patches.

tests/engine/test_patches.py fails when a patch is no longer needed.
"""

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from colossalai.accelerator import CpuAccelerator


def prepare_cpu() -> None:
    """Registers the CPU accelerator and applies the patches; idempotent."""
    import colossalai.accelerator

    colossalai.accelerator.set_accelerator(_cpu_accelerator())
    _allow_zero_on_cpu()
    _treat_no_group_as_nccl()


def _cpu_accelerator() -> "CpuAccelerator":
    """ColossalAI's CPU accelerator, with the methods implemented in which the original raises."""
    from colossalai.accelerator import CpuAccelerator

    class HostAccelerator(CpuAccelerator):
        """The CPU as the only device, without streams, with the host's memory."""

        def current_device(self) -> int:
            return 0

        def set_device(self, device: object = None) -> None:
            """Does nothing: there is one device."""

        def synchronize(self, device: object = None) -> None:
            """Does nothing: work on the CPU is done when the call returns."""

        def device_count(self) -> int:
            return 1

        def get_device_name(self, device: object = None) -> str:
            return "cpu"

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def initial_seed(self) -> int:
            return torch.initial_seed()

        def get_rng_state(self, device: object = None) -> torch.Tensor:
            return torch.get_rng_state()

        def empty_cache(self) -> None:
            """Does nothing: the host's allocator has no cache of ours."""

        def memory_allocated(self, device: object = None) -> int:
            return self.memory_reserved()

        def max_memory_allocated(self, device: object = None) -> int:
            return 1024 * self.max_memory_reserved()

        def reset_peak_memory_stats(self, device: object = None) -> None:
            """Does nothing: the operating system's high-water mark cannot be reset."""

        def Stream(self, device: object = None, priority: int = 0, **settings: object) -> None:
            return None

        def current_stream(self, device: object = None) -> None:
            return None

        def default_stream(self, device: object = None) -> None:
            return None

        def stream(self, stream_: object) -> contextlib.AbstractContextManager:
            return contextlib.nullcontext()

    return HostAccelerator()


def _allow_zero_on_cpu() -> None:
    """Patch: `LowLevelZeroOptimizer` refuses every accelerator that is not named cuda or npu.

    Cause: a check by name, though it computes correctly on a CPU. Remedy: the check is left out;
    that of the parameters' dtypes stays.
    """
    from colossalai.zero import LowLevelZeroOptimizer

    def check_dtypes(self: LowLevelZeroOptimizer) -> None:
        for group in self.optim.param_groups:
            for parameter in group["params"]:
                if not getattr(parameter, "skip_zero_check", False) and parameter.dtype != self._dtype:
                    raise TypeError(f"parameters are expected to be {self._dtype}, one is {parameter.dtype}")

    LowLevelZeroOptimizer._sanity_checks = check_dtypes


def _treat_no_group_as_nccl() -> None:
    """Patch: a pipeline's exchange fails with AttributeError on a host without GPU.

    Cause: ColossalAI asks PyTorch about HCCL, which only Huawei's build of PyTorch knows. Without
    NCCL it calls `torch.distributed.is_hccl_available`. With NCCL compiled in it reads
    `Backend.HCCL`, as soon as the group's backend is another one, as gloo is here. Remedy: on a
    host without GPU the answer is no for every group, whatever PyTorch was built with.
    """
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = lambda group: False
