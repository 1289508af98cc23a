"""Training: the loop, its recipes and the folder that a run writes."""
