"""Mask R-CNN as a library: networks, weights, the forward pass, masks, training. It never imports `app`."""
