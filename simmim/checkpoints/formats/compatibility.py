"""Which published Swin, V1 or V2, an encoder is; other programs know only these two."""

from typing import Literal

from simmim.models.swin import SwinTransformer
from simmim.models.swin.blocks import SwinBlock
from simmim.utils.console import warn
from simmim.utils.errors import UserError
from simmim.utils.sizes import Pair, show

Family = Literal["swin", "swinv2"]

# Options that cannot be inferred from the names and shapes of weights.
SWITCHES: dict[Family, dict[str, str]] = {
    "swin": {"norm": "pre", "similarity": "dot", "position_bias": "table"},
    "swinv2": {"norm": "res_post", "similarity": "cosine", "position_bias": "log_cpb"},
}
_WAY_OUT = "use format=safetensors or format=onnx"


def published_family(encoder: SwinTransformer, program: str) -> Family:
    """Swin V1 or V2, whichever this encoder is, if `program` computes the same.

    Raises:
        UserError: the encoder has something that the program lacks or computes in another way.
    """
    own = {name: encoder.arguments[name] for name in ("norm", "similarity", "position_bias")}
    families = [family for family, switches in SWITCHES.items() if switches == own]
    if not families:
        known = " and ".join(
            f"{family} ({', '.join(switches.values())})" for family, switches in SWITCHES.items()
        )
        raise UserError(
            f"{program} has no Swin with {', '.join(own.values())}, but {known}; {_WAY_OUT}"
        )
    if any(".norm3." in name for name in encoder.state_dict()):
        raise UserError(
            f"{program} has no norms on the main branch (model.main_branch_norm_every="
            f"{encoder.main_branch_norm_every}, as in swinv2_h and swinv2_g); {_WAY_OUT}"
        )
    if padded := find_padding(encoder):
        raise UserError(f"{program} pads in another way, and {padded}; {_WAY_OUT}")
    return families[0]


def warn_of_padding(encoder: SwinTransformer, origin: str) -> None:
    """Warns if windows are padded, which changes the outputs of weights from another program."""
    padded = find_padding(encoder)
    if padded is None or origin == "simmim":
        return
    theirs = "take no such size" if origin == "official" else "attend to it"
    fitting = " or ".join(
        str(height) if height == width else f"[{height},{width}]"
        for height, width in sizes_without_padding(encoder)
    )
    warn(
        f"{padded}: simmim masks the padding that this takes and {origin} models {theirs}, so outputs "
        f"are not theirs; use model.image_size={fitting}, the nearest that need none, or fine-tune"
    )


def sizes_without_padding(encoder: SwinTransformer) -> list[Pair]:
    """The image sizes nearest to the encoder's at which its window divides all feature maps.

    At most two, the nearest first; only the encoder's own if it is one.
    """
    sides = [_nearest_sides(encoder, axis) for axis in (0, 1)]
    pairs = [(height, width) for height in sides[0] for width in sides[1]]
    own = encoder.image_size
    nearest = sorted(pairs, key=lambda pair: abs(pair[0] - own[0]) + abs(pair[1] - own[1]))
    # If neither side fits, there are four.
    return nearest[:2]


def _nearest_sides(encoder: SwinTransformer, axis: int) -> list[int]:
    own, window = encoder.image_size[axis], encoder.window_size[axis]

    def fits(side: int) -> bool:
        tokens = [side // stride for stride in encoder.strides]
        return all(count % min(count, window) == 0 for count in tokens)

    if fits(own):
        return [own]
    below = [side for side in range(encoder.stride, own, encoder.stride) if fits(side)][-1:]
    # A whole number of windows in the last stage is a whole number in all stages.
    last = own + window * encoder.stride
    above = [s for s in range(own, last + 1, encoder.stride) if fits(s)][:1]
    return below + above


def find_padding(encoder: SwinTransformer) -> str | None:
    """Describes the first window that does not divide its feature map; None if all do."""
    for block in blocks(encoder):
        grid = block.grid
        if grid.padded_size != grid.feature_size:
            return (
                f"the window {show(grid.window_size)} does not divide the feature map "
                f"{show(grid.feature_size)}"
            )
    return None


def blocks(encoder: SwinTransformer) -> list[SwinBlock]:
    """All Swin blocks of the encoder, in order."""
    return [module for module in encoder.modules() if isinstance(module, SwinBlock)]
