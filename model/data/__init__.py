"""Datasets to train and evaluate on: scenes that draw themselves, and folders in COCO's format."""
