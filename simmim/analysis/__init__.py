"""Analysis of encoders: pure functions of an encoder and images, or of features.

Images are normalised, `b c h w`, and processed in one batch. These functions do not train or read
files; `plots` draws figures, and `python -m simmim.analysis` does all of it for a run.

Names are imported lazily, so that the command line responds without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simmim.analysis.amplitude import activation_amplitudes, amplitude_ratio
    from simmim.analysis.attention import attention_distances, attention_maps, attention_weights
    from simmim.analysis.cka import layer_features, layer_similarity, linear_cka
    from simmim.analysis.pca import feature_pictures, principal_components
    from simmim.analysis.position_bias import position_biases
    from simmim.evaluate.probe import probe

_HOME = {
    "activation_amplitudes": "simmim.analysis.amplitude",
    "amplitude_ratio": "simmim.analysis.amplitude",
    "attention_distances": "simmim.analysis.attention",
    "attention_maps": "simmim.analysis.attention",
    "attention_weights": "simmim.analysis.attention",
    "feature_pictures": "simmim.analysis.pca",
    "layer_features": "simmim.analysis.cka",
    "layer_similarity": "simmim.analysis.cka",
    "linear_cka": "simmim.analysis.cka",
    "position_biases": "simmim.analysis.position_bias",
    "principal_components": "simmim.analysis.pca",
    "probe": "simmim.evaluate.probe",
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
    return getattr(import_module(_HOME[name]), name)
