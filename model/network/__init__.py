"""The networks as torchvision modules, built from an `Architecture`."""
