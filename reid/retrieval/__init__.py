"""From samples to embeddings, galleries and ranked answers.

Import from the modules: ``embed``, ``gallery``, ``search``, ``exact``.  Nothing is imported here, so
that the exact search needs neither torch nor FAISS.
"""
