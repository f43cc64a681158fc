"""From files on disk to image and label tensors: data sets, transforms and loaders."""
