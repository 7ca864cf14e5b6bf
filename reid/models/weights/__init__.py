"""Weight files: read as plain tensors, recognised by the project that published them, fetched by name."""
