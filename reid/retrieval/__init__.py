"""From samples to embeddings, galleries and ranked answers.

Import from the modules: ``embed``, ``gallery``, ``search``, ``exact``. This package imports nothing by itself, so that
the exact search needs neither torch nor FAISS.
"""
