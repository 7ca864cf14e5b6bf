"""Persons: groups of crops of a gallery that show one person or object, and what people have decided about them."""
