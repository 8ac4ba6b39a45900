"""ColossalAI on a host without GPU: an accelerator that answers, and two patches (tests/engine/test_patches.py tells when they may go)."""

import contextlib

import torch
import torch.distributed as dist


def prepare_cpu() -> None:
    """Lets ColossalAI train on the CPU; idempotent."""
    import colossalai.accelerator

    colossalai.accelerator.set_accelerator(_cpu_accelerator())
    _allow_zero_on_cpu()
    _say_that_there_is_no_hccl()


def _cpu_accelerator() -> "colossalai.accelerator.CpuAccelerator":  # noqa: F821
    """ColossalAI's CPU accelerator with the questions answered at which the original raises."""
    from colossalai.accelerator import CpuAccelerator

    class HostAccelerator(CpuAccelerator):
        """A CPU as a device: one, without streams, whose memory is the host's."""

        def current_device(self) -> int:
            return 0

        def set_device(self, device: object = None) -> None:
            """There is one device."""

        def synchronize(self, device: object = None) -> None:
            """Work on the CPU is done when the call returns."""

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
            """The host's allocator keeps nothing for us."""

        def memory_allocated(self, device: object = None) -> int:
            return self.memory_reserved()

        def max_memory_allocated(self, device: object = None) -> int:
            return 1024 * self.max_memory_reserved()

        def reset_peak_memory_stats(self, device: object = None) -> None:
            """The operating system's high-water mark cannot be reset."""

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
    """Patch: `LowLevelZeroOptimizer` refuses every accelerator not called cuda or npu, though it computes correctly on a CPU.

    Its check of the parameters' dtypes is kept.
    """
    from colossalai.zero import LowLevelZeroOptimizer

    def check_dtypes(self: LowLevelZeroOptimizer) -> None:
        for group in self.optim.param_groups:
            for parameter in group["params"]:
                if not getattr(parameter, "skip_zero_check", False) and parameter.dtype != self._dtype:
                    raise TypeError(f"parameters are expected to be {self._dtype}, one is {parameter.dtype}")

    LowLevelZeroOptimizer._sanity_checks = check_dtypes


def _say_that_there_is_no_hccl() -> None:
    """Patch: where PyTorch was built without NCCL, ColossalAI asks for `torch.distributed.is_hccl_available`.

    That function exists in Huawei's build of PyTorch alone.
    """
    if not hasattr(dist, "is_hccl_available"):
        dist.is_hccl_available = lambda: False
