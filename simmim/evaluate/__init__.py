"""Evaluation: a labelled model by its task, or k-NN and linear probe of a frozen encoder."""
