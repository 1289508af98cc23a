"""The prepared engine: images in, instances out."""
