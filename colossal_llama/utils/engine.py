"""ColossalAI on this host: the launch, the device, and the kernels that need no compiler.

Everything here goes through doors that ColossalAI offers (`set_accelerator`, `KernelLoader.register_extension`), except the
two patches at the end of the file and those in engine_patches.py, each with its reason and a test (tests/unit/test_engine.py) that
fails when it is no longer needed.
"""

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist

from colossal_llama.utils.adamw import adamw, changing_numbers
from colossal_llama.utils.engine_patches import apply_patches
from colossal_llama.utils.gemini_patches import apply_gemini_patches
from colossal_llama.utils.launchers import take_over_from_slurm


def has_gpu() -> bool:
    """Whether this host trains on CUDA devices; without one the processes talk through gloo and compute on the CPU."""
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """The device of this process: `cuda:LOCAL_RANK` or `cpu`."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def launch(seed: int) -> None:
    """Joins the process group that `torchrun`, `colossalai run` or `srun` started, and prepares ColossalAI for this host.

    Without a launcher the process is a world of one. On a GPU the backend is NCCL, else gloo.

    Args:
        seed: of every random generator, the same on all ranks.
    """
    take_over_from_slurm()
    if "RANK" in os.environ:
        _die_with_the_launcher()
    else:
        _describe_a_world_of_one()
    prepare_engine()
    import colossalai

    place = os.environ
    local_rank = int(place["LOCAL_RANK"])
    colossalai.launch(
        rank=int(place["RANK"]),
        world_size=int(place["WORLD_SIZE"]),
        host=place["MASTER_ADDR"],
        port=int(place["MASTER_PORT"]),
        # SLURM may show each task its own GPU alone, which then is number 0 for all of them.
        local_rank=local_rank % torch.cuda.device_count() if has_gpu() else local_rank,
        seed=seed,
        verbose=False,
    )


def join_without_engine() -> None:
    """Joins the process group that `launch` would join, by PyTorch alone: for telling the others why ColossalAI is not there."""
    place = os.environ
    if has_gpu():
        torch.cuda.set_device(int(place["LOCAL_RANK"]) % torch.cuda.device_count())
    host = f"[{place['MASTER_ADDR']}]" if ":" in place["MASTER_ADDR"] else place["MASTER_ADDR"]
    dist.init_process_group(
        "nccl" if has_gpu() else "gloo",
        init_method=f"tcp://{host}:{place['MASTER_PORT']}",
        rank=int(place["RANK"]),
        world_size=int(place["WORLD_SIZE"]),
    )


def prepare_engine() -> None:
    """Registers our accelerator (on a host without GPU) and our Adam kernels with ColossalAI; idempotent."""
    with _quiet_imports():
        import colossalai.accelerator
        import colossalai.booster.plugin
        from colossalai.kernel.kernel_loader import CPUAdamLoader, FusedOptimizerLoader

    for loader, extension in ((CPUAdamLoader, TorchCpuAdam), (FusedOptimizerLoader, TorchCudaAdam)):
        # Alone in the registry: with several usable kernels the loader warns, and ColossalAI's own would be compiled by nvcc on
        # first use (about 100 s, and a CUDA toolkit that many a host does not have).
        loader.REGISTRY.clear()
        loader.register_extension(extension)
    if not has_gpu():
        colossalai.accelerator.set_accelerator(_cpu_accelerator())
        _allow_zero_on_cpu()
        _say_that_there_is_no_hccl()
    else:
        apply_gemini_patches()
    apply_patches()
    _silence_what_users_cannot_change()


def leave() -> None:
    """Leaves the process group together with the other ranks, so that the process ends without complaints of the backend."""
    if dist.is_initialized():
        dist.barrier()  # without torchrun rank 0 has the store, which others may still read
    # HybridParallelPlugin's finaliser destroys its process groups; it fails when they, or the interpreter, have gone before it.
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def take_share_of_cores() -> int:
    """Lets this process compute on its share of the host's cores, for optimizer states in host memory; returns how many threads it has.

    torchrun leaves one thread to each of several processes on a host (OMP_NUM_THREADS=1) unless the user says otherwise: then 15 of 16
    cores would look on while the optimizer works. Another number in that variable is the user's, and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.get_num_threads()


def _die_with_the_launcher() -> None:
    """Asks Linux to end this process when its launcher is gone.

    torchrun starts ranks in sessions of their own: after `kill -9` of the launcher they would train on, unseen, and write into the
    directories of the run that is started next.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def _describe_a_world_of_one() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in alone.items()})


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """ColossalAI warns about packages that training does not need (apex, nvtx, torch internals) while it is imported."""
    # galore_torch imports it; none of its kernels is used here.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _silence_what_users_cannot_change() -> None:
    """Notices of ColossalAI's and PyTorch's internals to each other: deprecations inside the engine, one a rank."""
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("ERROR")
    for module in (r"colossalai\..*", r"torch\.distributed\..*"):
        warnings.filterwarnings("ignore", module=module)


class TorchCpuAdam:
    """A kernel for `CPUAdamLoader`: PyTorch's fused AdamW for CPU tensors. Needs no compiler and no CUDA toolkit."""

    name = "torch_cpu_adam"
    priority = 100

    def is_available(self) -> bool:
        return True

    def assert_compatible(self) -> None:
        """Nothing to check: the kernel is part of every PyTorch."""

    def load(self) -> "TorchCpuAdam":
        return self

    class CPUAdamOptimizer:
        """What `HybridAdam` calls for parameters on the CPU (same constructor and `step` as ColossalAI's C++ class)."""

        def __init__(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool):
            self.adamw_mode = adamw_mode

        def step(
            self,
            step: int,
            lr: float,
            beta1: float,
            beta2: float,
            eps: float,
            weight_decay: float,
            bias_correction: bool,
            parameter: torch.Tensor,
            gradient: torch.Tensor,
            exp_avg: torch.Tensor,
            exp_avg_sq: torch.Tensor,
            div_scale: float,
        ) -> None:
            """One AdamW step on one tensor, in place; the gradient is divided by `div_scale` when that is positive."""
            fused_adam(
                [gradient.to(parameter.dtype)],  # Gemini's are in fp16
                [parameter],
                [exp_avg],
                [exp_avg_sq],
                lr,
                beta1,
                beta2,
                eps,
                step,
                self.adamw_mode,
                bias_correction,
                weight_decay,
                div_scale,
            )


class TorchCudaAdam:
    """A kernel for `FusedOptimizerLoader`: PyTorch's fused AdamW for CUDA tensors."""

    name = "torch_cuda_adam"
    priority = 100

    def is_available(self) -> bool:
        return True

    def assert_compatible(self) -> None:
        """Nothing to check: the kernel is part of every PyTorch."""

    def load(self) -> "TorchCudaAdam":
        return self

    @staticmethod
    def multi_tensor_adam(
        chunk_size: int,
        overflow_buffer: torch.Tensor,
        tensor_lists: list[list[torch.Tensor]],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        step: int,
        adamw_mode: int,
        bias_correction: int,
        weight_decay: float,
        div_scale: float,
    ) -> None:
        """One AdamW step on lists of gradients, parameters, first and second moments (ColossalAI's signature)."""
        gradients, parameters, exp_avgs, exp_avg_sqs = tensor_lists
        hyper = (lr, beta1, beta2, eps, step, adamw_mode, bias_correction, weight_decay, div_scale)
        if all(gradient.dtype == parameter.dtype for gradient, parameter in zip(gradients, parameters, strict=True)):
            fused_adam(gradients, parameters, exp_avgs, exp_avg_sqs, *hyper)
            return
        # Gemini hands half-precision gradients for fp32 parameters.
        if not (adamw_mode and bias_correction and importlib.util.find_spec("triton")):
            for lists in zip(gradients, parameters, exp_avgs, exp_avg_sqs, strict=True):  # only one fp32 copy at a time
                fused_adam([lists[0].to(lists[1].dtype)], *([tensor] for tensor in lists[1:]), *hyper)
            return
        factor = 1.0 / div_scale if div_scale > 0 else 1.0
        changing = changing_numbers(lr, beta1, beta2, step, factor, parameters[0].device)
        for gradient, parameter, exp_avg, exp_avg_sq in zip(gradients, parameters, exp_avgs, exp_avg_sqs, strict=True):
            adamw(parameter, gradient, exp_avg, exp_avg_sq, None, changing, beta1, beta2, eps, weight_decay)


def fused_adam(
    gradients: list[torch.Tensor],
    parameters: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: float,
    adamw_mode: bool | int,
    bias_correction: bool | int,
    weight_decay: float,
    div_scale: float,
) -> None:
    """One AdamW step on lists of tensors of one device and dtype, in place, by PyTorch's fused kernel.

    Args:
        gradients, parameters, exp_avgs, exp_avg_sqs: of the same lengths and shapes.
        lr, beta1, beta2, eps, weight_decay: as in arXiv 1711.05101.
        step: counted from 1.
        adamw_mode, bias_correction: must be true.
        div_scale: gradients are divided by it when it is positive.

    Raises:
        NotImplementedError: another Adam is asked for.
    """
    if not adamw_mode or not bias_correction:
        raise NotImplementedError("only AdamW with bias correction is offered here")
    device = parameters[0].device
    step_tensor = torch.full((), float(step), dtype=torch.float32, device=device)
    scale = torch.full((), div_scale, dtype=torch.float32, device=device) if div_scale > 0 else None
    torch._fused_adamw_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [step_tensor] * len(parameters),
        amsgrad=False,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        grad_scale=scale,
    )


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
