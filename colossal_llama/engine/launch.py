"""Launch of ColossalAI on this host: process group, device, accelerator and kernel extensions.

ColossalAI's own interfaces are used (`set_accelerator`, `KernelLoader.register_extension`), except
for the patches of engine/cpu_accelerator.py and engine/patches/, each with its reason and a test
that fails when it is no longer needed.
"""

import contextlib
import gc
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist

from colossal_llama.engine.adam_extension import TorchCpuAdam, TorchCudaAdam
from colossal_llama.engine.cpu_accelerator import prepare_cpu
from colossal_llama.engine.patches.core import apply_patches
from colossal_llama.engine.patches.gemini import apply_gemini_patches
from colossal_llama.utils.distributed_env import (
    adopt_slurm_variables,
    end_with_launcher,
    nccl_interface_problems,
    share_of_cores,
)
from colossal_llama.utils.errors import UserError


def has_gpu() -> bool:
    """True when this host trains on CUDA devices; otherwise it computes on the CPU, with gloo."""
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """Device of this process: `cuda:LOCAL_RANK` or `cpu`."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def launch(seed: int) -> None:
    """Joins the process group and prepares ColossalAI for this host.

    The launcher is `torchrun`, `colossalai run` or `srun`; without one the process is a world of
    one. On a GPU the backend is NCCL, else gloo.

    Args:
        seed: of every random generator, the same on all ranks.

    Raises:
        UserError: the ranks cannot meet at MASTER_ADDR, or this host has no GPU for this rank.
    """
    adopt_slurm_variables()
    if "RANK" in os.environ:
        end_with_launcher()
    else:
        _serve_single_process()
    prepare_engine()
    import colossalai

    local_rank = int(os.environ["LOCAL_RANK"])
    if has_gpu():
        _check_gpus(local_rank)
        if problems := nccl_interface_problems():
            raise UserError(problems)
    with _meeting_problems_named():
        colossalai.launch(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            # SLURM may show each task its own GPU only, which then is number 0 for all of them.
            local_rank=local_rank % torch.cuda.device_count() if has_gpu() else local_rank,
            seed=seed,
            verbose=False,
        )


def join_without_engine() -> None:
    """Joins the process group without ColossalAI, to report that it is missing."""
    if has_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    host = f"[{os.environ['MASTER_ADDR']}]" if ":" in os.environ["MASTER_ADDR"] else os.environ["MASTER_ADDR"]
    dist.init_process_group(
        "nccl" if has_gpu() else "gloo",
        init_method=f"tcp://{host}:{os.environ['MASTER_PORT']}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def prepare_engine() -> None:
    """Registers the Adam extensions and, without GPU, the CPU accelerator; patches; idempotent."""
    with _quiet_imports():
        import colossalai.booster.plugin  # noqa: F401
        from colossalai.kernel.kernel_loader import CPUAdamLoader, FusedOptimizerLoader

    for loader, extension in ((CPUAdamLoader, TorchCpuAdam), (FusedOptimizerLoader, TorchCudaAdam)):
        # The only one in the registry: with several usable kernels the loader warns, and
        # ColossalAI's own would be compiled by nvcc on first use (about 100 s, and a CUDA toolkit
        # that many hosts lack).
        loader.REGISTRY.clear()
        loader.register_extension(extension)
    if not has_gpu():
        prepare_cpu()
    else:
        apply_gemini_patches()
    apply_patches()
    _silence_internal_warnings()


def colossalai_version() -> str:
    """Version of the installed ColossalAI."""
    import colossalai

    return colossalai.__version__


def leave() -> None:
    """Leaves the process group with the other ranks, so that the backend prints no errors."""
    if dist.is_initialized():
        dist.barrier()  # without torchrun rank 0 hosts the store, which others may still read
    # HybridParallelPlugin's finaliser destroys its process groups; it fails when they, or the
    # interpreter, are gone before.
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def take_share_of_cores() -> int:
    """Sets the threads to this process's share of the cores, for an optimizer in host memory.

    With torchrun's one thread 15 of 16 cores would be idle during the optimizer step.

    Returns:
        The number of threads.
    """
    if cores := share_of_cores():
        torch.set_num_threads(cores)
    return torch.get_num_threads()


def _serve_single_process() -> None:
    """Sets the launcher's variables for a world of one, whose store this process serves.

    The store's own port is free and taken at once; a port that is asked for and bound later may be
    another process's by then. PyTorch connects to a store that is there already if
    TORCHELASTIC_USE_AGENT_STORE says so.
    """
    global _single_process_store
    _single_process_store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = _single_process_store.port
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone |= {"LOCAL_WORLD_SIZE": 1, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}  # others may be left over in the shell
    os.environ.update({name: str(value) for name, value in alone.items()}, TORCHELASTIC_USE_AGENT_STORE="True")


_single_process_store: dist.TCPStore | None = None  # closed when it is collected


def _check_gpus(local_rank: int) -> None:
    """Refuses a rank that would share a GPU; what NCCL says of it comes late, and names no cause.

    Raises:
        UserError: this host shows fewer GPUs than it has ranks.
    """
    gpus, variables = torch.cuda.device_count(), os.environ
    processes = int(variables.get("LOCAL_WORLD_SIZE") or variables.get("SLURM_NTASKS_PER_NODE") or local_rank + 1)
    shows_each_its_own = gpus == 1 and ("CUDA_VISIBLE_DEVICES" in variables or "SLURM_STEP_ID" in variables)
    if processes > gpus and not shows_each_its_own:
        raise UserError(
            f"{socket.gethostname()} has {gpus} GPUs for {processes} processes (CUDA_VISIBLE_DEVICES is "
            f"{variables.get('CUDA_VISIBLE_DEVICES', 'not set')}): start at most {gpus} on each host (--nproc_per_node)"
        )


@contextlib.contextmanager
def _meeting_problems_named() -> Iterator[None]:
    """Turns what PyTorch says of a store that cannot be served or reached into a `UserError`."""
    try:
        yield
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            problem = (
                f"MASTER_PORT={os.environ['MASTER_PORT']} is in use on {socket.gethostname()}, perhaps by another run: "
                "choose another one (--master_port of torchrun and colossalai run)"
            )
        else:
            problem = (
                f"rank {os.environ['RANK']} on {socket.gethostname()} cannot meet the other ranks at {where}: is that "
                "rank 0's host, does it run, and do the hosts reach each other? "
                "colossal_llama/cluster/preflight.py checks that"
            )
        raise UserError(f"{problem} ({' '.join(str(error).split())[:300]})") from error


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """Suppresses the warnings of ColossalAI's import about packages that training does not need.

    They are about apex, nvtx and internals of PyTorch.
    """
    # galore_torch imports it; none of its kernels is used here.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _silence_internal_warnings() -> None:
    """Silences notices about the libraries' internals, which every rank would print."""
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("ERROR")
    for module in (r"colossalai\..*", r"torch\.distributed\..*"):
        warnings.filterwarnings("ignore", module=module)
    # About a model's generation_config.json, which training copies unchanged.
    warnings.filterwarnings("ignore", message="`do_sample` is set to `False`")
