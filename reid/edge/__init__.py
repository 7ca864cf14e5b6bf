"""Networks for small computers: fewer channels, several widths, and whole numbers of eight bits."""
