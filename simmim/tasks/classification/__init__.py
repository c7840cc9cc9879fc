"""Classification: one class per image."""

from simmim.tasks.classification.task import Classification

TASK = Classification
