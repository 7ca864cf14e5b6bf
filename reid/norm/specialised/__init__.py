"""Members of the normalization family that few programs need: adapters, style, regions, slimmable widths and more."""
