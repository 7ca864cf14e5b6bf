"""Turn files into tensors: manifests, protocols, images, transforms, loading and sampling."""
