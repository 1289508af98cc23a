"""Mask probabilities to COCO RLE and polygons, without an N×H×W array."""
