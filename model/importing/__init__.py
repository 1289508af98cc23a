"""Models of other frameworks → models of ours: torchvision fine-tunes, Detectron2 and MMDetection checkpoints."""
