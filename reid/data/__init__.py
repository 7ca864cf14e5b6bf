"""From files to tensors: manifests and protocols, pictures, transforms, loading, sampling."""
