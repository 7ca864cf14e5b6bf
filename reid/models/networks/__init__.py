"""Backbones and pooling layers: networks that turn images into feature maps, and feature maps into vectors."""
