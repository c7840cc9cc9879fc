"""Compile time of the blocks of an encoder, to compare deep encoders with a shallow one."""

import time

import torch

from simmim.models.swin import ARCHITECTURES, SwinTransformer, create_encoder
from simmim.models.swin.compile import compile_blocks
from simmim.utils.errors import UserError

# Swin V2-G itself has 3·10⁹ parameters; the length of a block's code does not depend on channels.
_CHANNELS = 32
_IMAGE, _WINDOW = 128, 8


def measure_compile_time(name: str, device: torch.device) -> float:
    """Seconds by which the first training step exceeds the second, without any compile cache.

    The encoder has the depths and extra norms of the named architecture, but few channels.

    Raises:
        UserError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"compile_time={name} is unknown; use one of {', '.join(ARCHITECTURES)}")
    stages = len(ARCHITECTURES[name]["depths"])
    encoder = create_encoder(
        name,
        image_size=_IMAGE,
        window_size=_WINDOW,
        embed_dim=_CHANNELS,
        num_heads=[2**stage for stage in range(stages)],
    ).to(device)
    torch.compiler.reset()
    compile_blocks(encoder, "default")
    caches = torch._inductor.config.patch(force_disable_caches=True)
    with caches:
        first, second = _step_seconds(encoder, device), _step_seconds(encoder, device)
    return first - second


def _step_seconds(encoder: SwinTransformer, device: torch.device) -> float:
    images = torch.randn(2, 3, _IMAGE, _IMAGE, device=device)
    started = time.perf_counter()
    encoder(images).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
