"""Attacks on embeddings, how they are scored, and the alarm of networks with gates."""
