"""Normalizations that few programs need: adapters, style, regions, slimmable widths and more."""
