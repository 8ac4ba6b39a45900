"""ColossalAI on this host: the launch, the device, and the kernels that need no compiler.

Everything here goes through doors that ColossalAI offers (`set_accelerator`,
`KernelLoader.register_extension`), except the patches of cpu_engine.py, engine_patches.py and
gemini_patches.py, each with its reason and a test that fails when it is no longer needed.
"""

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist

from colossal_llama.engine.adam_extension import TorchCpuAdam, TorchCudaAdam
from colossal_llama.engine.cpu_accelerator import prepare_cpu
from colossal_llama.engine.patches.core import apply_patches
from colossal_llama.engine.patches.gemini import apply_gemini_patches
from colossal_llama.utils.distributed_env import adopt_slurm_variables


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
    adopt_slurm_variables()
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
        import colossalai.booster.plugin  # noqa: F401
        from colossalai.kernel.kernel_loader import CPUAdamLoader, FusedOptimizerLoader

    for loader, extension in ((CPUAdamLoader, TorchCpuAdam), (FusedOptimizerLoader, TorchCudaAdam)):
        # Alone in the registry: with several usable kernels the loader warns, and ColossalAI's own
        # would be compiled by nvcc on first use (about 100 s, and a CUDA toolkit that many a host
        # does not have).
        loader.REGISTRY.clear()
        loader.register_extension(extension)
    if not has_gpu():
        prepare_cpu()
    else:
        apply_gemini_patches()
    apply_patches()
    _silence_what_users_cannot_change()


def colossalai_version() -> str:
    """Version of the installed ColossalAI."""
    import colossalai

    return colossalai.__version__


def leave() -> None:
    """Leaves the process group together with the other ranks, so that the process ends without complaints of the backend."""
    if dist.is_initialized():
        dist.barrier()  # without torchrun rank 0 has the store, which others may still read
    # HybridParallelPlugin's finaliser destroys its process groups; it fails when they, or the
    # interpreter, have gone before it.
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
    """Notices of ColossalAI's, PyTorch's and transformers' internals, one a rank: deprecations inside the engine, and the like."""
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("ERROR")
    for module in (r"colossalai\..*", r"torch\.distributed\..*"):
        warnings.filterwarnings("ignore", module=module)
    # Of a model's generation_config.json, which training hands on as it is.
    warnings.filterwarnings("ignore", message="`do_sample` is set to `False`")
