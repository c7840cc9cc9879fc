"""Failures of a machine, told with what to do about them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from simmim.errors import UserError


@contextmanager
def explained_failures(*, batch_size: int, num_workers: int, accumulation: int) -> Iterator[None]:
    """Turns memory that ran out, or a loader worker that was killed, into one line.

    Raises:
        UserError: with options that take less.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error, batch_size, accumulation) from error
    except RuntimeError as error:
        message = str(error)
        if "can't allocate memory" in message or "not enough memory" in message:
            raise _out_of_memory(error, batch_size, accumulation) from error
        if found := re.search(r"DataLoader worker \(pid.*?\) (.+?)(?:\.|$)", message):
            raise UserError(
                f"a loader worker ended ({_reason(error, found[1])}), most often for want of memory "
                f"or of shared memory (/dev/shm); use fewer than data.num_workers={num_workers}, or a "
                "smaller data.batch_size. The same command goes on from the last checkpoint"
            ) from error
        raise


def _out_of_memory(error: BaseException, batch_size: int, accumulation: int) -> UserError:
    halves = ""
    if batch_size > 1:
        halves = (
            f"data.batch_size={batch_size // 2} trainer.accumulate_grad_batches={2 * accumulation} "
            "(as many images a step), or "
        )
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"out of memory with data.batch_size={batch_size} ({first_line}); use {halves}"
        "model.checkpoint_blocks=all model.sequential_attention=1, which take time instead. The same "
        "command with these goes on from the last checkpoint"
    )


def _reason(error: BaseException, found: str) -> str:
    """`killed by signal: Killed` stands in what caused the error where workers were several."""
    cause = str(error.__cause__ or "")
    signal = re.search(r"killed by signal: (\w+)", cause + str(error))
    return f"killed by signal {signal[1]}" if signal else found
