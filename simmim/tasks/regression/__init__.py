"""Regression: one or several numbers per image."""

from simmim.tasks.regression.task import Regression

TASK = Regression
