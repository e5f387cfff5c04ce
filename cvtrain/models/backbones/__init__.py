"""Backbones: images to feature maps or a vector."""
