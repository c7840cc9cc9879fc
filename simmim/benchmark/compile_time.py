"""How long compiling takes: the blocks of deep encoders beside those of a shallow one."""

import time

import torch

from simmim.models.swin import ARCHITECTURES, SwinTransformer, create_encoder
from simmim.models.swin.compile import compile_blocks
from simmim.utils.errors import UserError

# G itself has 3·10⁹ parameters. Code for a block is as long whatever its channels are.
_CHANNELS = 32
_IMAGE, _WINDOW = 128, 8


def measure_compile_time(name: str, device: torch.device) -> float:
    """Seconds that the first training step takes beyond the second, with nothing compiled before.

    An encoder of this name's depths and extra norms, and of few channels.

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
