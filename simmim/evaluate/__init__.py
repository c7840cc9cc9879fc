"""Evaluation: accuracy of a classifier, or k-NN and linear probe of a frozen encoder."""
