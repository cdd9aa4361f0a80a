"""The architectures of the classifier, one file each: spectrogram and mask in, scores out."""
