"""Person re-identification and multi-domain retrieval with camera-, modality- and domain-specific normalization."""

__version__ = "0.1.0"
