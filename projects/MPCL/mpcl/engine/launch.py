"""Processes of a job: one, those of torchrun, or those that ``--num-gpus`` asks for."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .preemption import StopSignals


def launch_job(main: Callable, args, *, device: str) -> None:
    """Calls ``main(args)`` on every process.

    Under torchrun (RANK, WORLD_SIZE and LOCAL_RANK are set) this process is one of them; else there
    are ``args.num_gpus`` on this machine, and signals to this process reach all of them. The status
    of a process that ends early becomes that of the job; of one that a signal ends, 128 and the
    signal's number.

    Args:
        device: MODEL.DEVICE; the processes of another than the GPU meet through gloo.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        _join_torchrun(gpu=torch.device(device).type == "cuda")
        main(args)
        dist.destroy_process_group()
        return
    if torch.device(device).type != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 takes NCCL where it sees a GPU
    with _signals_to_children():
        try:
            launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:
            if error.exit_code >= 0:  # the process has said why
                raise SystemExit(error.exit_code) from error
            rank = args.machine_rank * args.num_gpus + error.error_index
            print(
                f"Rank {rank} (process {error.error_pid}) was ended by {error.signal_name}; after "
                "SIGKILL, look for memory that ran out (dmesg). Go on with --resume",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(128 - error.exit_code) from error  # as shells count


def is_restart() -> bool:
    """Whether torchrun has started this job again (``--max-restarts``); once the processes have
    met, the same on all, which must all call it: torchrun counts the restarts of each machine, and
    does not count those that another machine was the reason for."""
    return any(comm.all_gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


def _join_torchrun(gpu: bool) -> None:
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = int(os.environ["WORLD_SIZE"])
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    store = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and ranks == on_this_machine:
        # torchrun keeps one store over all restarts. Without a prefix of its own, a restarted job
        # would find the addresses of the dead processes there (pytorch issue 135712).
        agents = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", agents)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=ranks,
        timeout=DEFAULT_TIMEOUT,  # of ranks that hang; one that dies is noticed at once
    )
    comm.create_local_process_group(on_this_machine)


@contextmanager
def _signals_to_children() -> Iterator[None]:
    """Passes on what asks a job to stop; without children it is as ever."""

    def pass_on(number: int, frame: object) -> None:
        children = [child.pid for child in active_children() if child.pid is not None]
        for pid in children:
            os.kill(pid, number)
        if not children:
            signal.signal(number, previous[number])
            os.kill(os.getpid(), number)

    previous = {number: signal.signal(number, pass_on) for number in StopSignals.SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
