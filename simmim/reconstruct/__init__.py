"""Reconstructions of given images by a pretrained model, drawn as contact sheets."""
