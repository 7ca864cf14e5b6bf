"""The synthetic street: people and vehicles, drawn as the cameras of two sites see them."""
