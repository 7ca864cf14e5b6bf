"""The synthetic street: people and vehicles drawn as seen by the cameras of two sites."""
