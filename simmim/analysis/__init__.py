"""Looking inside an encoder: pure functions of an encoder and images, of features and of answers.

Images are normalised, `b c h w`, and go through in one batch. Nothing here trains, reads files or knows
data; `drawing` makes pictures, and `python -m simmim.analysis` does all of it for a run.

Names load on first use, so that the command line answers without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simmim.analysis.amplitude import activation_amplitudes, amplitude_ratio
    from simmim.analysis.attention import attention_distances, attention_maps, attention_weights
    from simmim.analysis.components import feature_pictures, principal_components
    from simmim.analysis.position_bias import position_biases
    from simmim.analysis.probing import probe
    from simmim.analysis.similarity import layer_features, layer_similarity, linear_cka

_HOME = {
    "activation_amplitudes": "amplitude",
    "amplitude_ratio": "amplitude",
    "attention_distances": "attention",
    "attention_maps": "attention",
    "attention_weights": "attention",
    "feature_pictures": "components",
    "layer_features": "similarity",
    "layer_similarity": "similarity",
    "linear_cka": "similarity",
    "position_biases": "position_bias",
    "principal_components": "components",
    "probe": "probing",
}

__all__ = [
    "activation_amplitudes",
    "amplitude_ratio",
    "attention_distances",
    "attention_maps",
    "attention_weights",
    "feature_pictures",
    "layer_features",
    "layer_similarity",
    "linear_cka",
    "position_biases",
    "principal_components",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'simmim.analysis' has no attribute {name!r}")
    return getattr(import_module(f"simmim.analysis.{_HOME[name]}"), name)
