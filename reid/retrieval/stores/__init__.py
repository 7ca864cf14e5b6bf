"""Stores of vectors: where a gallery keeps its vectors and searches them.

Every store follows the protocol of :mod:`reid.retrieval.stores.store`, and one suite of tests runs on all of them.
"""
