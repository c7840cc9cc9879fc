"""LightningModules: model, loss, optimiser and logging of each stage."""

from simmim.tasks.classification import ClassificationTask
from simmim.tasks.evaluation import EvaluationTask
from simmim.tasks.simmim import SimMIMTask

__all__ = ["ClassificationTask", "EvaluationTask", "SimMIMTask"]
