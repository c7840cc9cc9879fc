"""Position bias and logit scale of a run's final encoder or latest checkpoint."""

import json
from pathlib import Path

from safetensors import safe_open

from simmim.analysis.position_bias import BlockAttention, describe_attention, is_of_attention
from simmim.checkpoints.read import read_weights


def read_attention(run_dir: Path) -> list[BlockAttention]:
    """Reads them from a run's exported encoder or a checkpoint; no blocks if it has neither."""
    finished = run_dir / "encoder.safetensors"
    checkpoints = [run_dir / "checkpoints" / name for name in ("last.ckpt", "best.ckpt")]
    last = next((path for path in checkpoints if path.exists()), None)
    if finished.is_file():
        with safe_open(finished, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("simmim", "null"))
            weights = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if is_of_attention(name)
            }
    elif last is not None:
        content = read_weights(last)
        description, weights = content.description, content.encoder
    else:
        return []
    if description is None:
        return []
    return describe_attention(weights, description["arguments"], description["window_sizes"])
